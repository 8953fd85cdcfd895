"""Running mean and variance of batch norm, measured again on unlabelled data.

On data of another kind: Schneider et al. 2020, arXiv 2006.16971; Nado et al. 2020, arXiv
2006.10963. For averaged weights: Izmailov et al. 2018, arXiv 1803.05407.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # every BatchNorm of torch, SyncBatchNorm, timm's

from hf_sft.errors import UserError


@torch.no_grad()
def reestimate_statistics_(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    only: Collection[str] | None = None,
) -> list[str]:
    """Set μ and σ² of every batch norm to those of its inputs over all of ``batches``.

    μ = Σ_b n_b·μ_b / N and σ² = (Σ_b M_b + n_b·(μ_b − μ)²) / (N − 1), M_b the summed squares in a
    batch around μ_b: exact for any batch sizes. Meanwhile each normalises by its batch, so batches
    should be mixed, not sorted by class. Nothing else moves: no other module leaves eval mode, all
    modes are restored, and ``labels`` are not looked at.

    ``only``: names of the modules to measure, all by default; the names measured are returned.

    Raises:
        UserError: no batch, or no batch norm with statistics.
    """
    norms = {n: m for n, m in statistical_norms(model).items() if only is None or n in only}
    if not norms:
        raise UserError(f"{type(model).__name__} has no batch norm whose statistics could change.")
    moments = {name: _Moments() for name in norms}
    with normalising_by_batch(model, norms.values()), _watched(norms, moments):
        for batch in batches:
            model(**inputs_of(model, batch))
    for name, module in norms.items():
        moments[name].write_(module)
    return list(norms)


def statistical_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm modules that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


def fixed_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch-norm modules whose statistics never change, as those of most detectors, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, _BatchNorm)
        and {"running_mean", "running_var"} <= {n for n, _ in module.named_buffers(recurse=False)}
    }


def inputs_of(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without its labels, where the model is."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in batch.items() if key != "labels"}


@contextmanager
def normalising_by_batch(model: nn.Module, norms: Iterable[nn.Module]) -> Iterator[None]:
    """Everything in eval mode but ``norms``; modes and statistics as they were at the end."""
    norms = list(norms)
    modes = {module: module.training for module in model.modules()}
    kept = [{name: b.clone() for name, b in norm.named_buffers(recurse=False)} for norm in norms]
    model.eval()
    for norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for norm, buffers in zip(norms, kept, strict=True):
                for name, buffer in norm.named_buffers(recurse=False):
                    buffer.copy_(buffers[name])


class _Moments:
    """Count, mean and summed squares around it, per channel; Chan et al. 1979 for merging."""

    def __init__(self) -> None:
        self.count, self.batches = 0, 0
        self.mean, self.squares = torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """x: (examples, channels, ...)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = (t.double().cpu() for t in torch.var_mean(x, dims, correction=0))
        n = x.numel() // x.shape[1]
        shift, total = mean - self.mean, self.count + n
        self.squares = self.squares + n * variance + shift.square() * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count, self.batches = total, self.batches + 1

    def write_(self, module: nn.Module) -> None:
        if not self.batches:
            raise UserError("no batch was given to measure the statistics of batch norm on.")
        module.running_mean.copy_(self.mean)
        module.running_var.copy_(self.squares / max(self.count - 1, 1))
        if module.num_batches_tracked is not None:
            module.num_batches_tracked.fill_(self.batches)


@contextmanager
def _watched(norms: Mapping[str, nn.Module], moments: Mapping[str, _Moments]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda _, given, seen=moments[name]: seen.add(given[0]))
        for name, module in norms.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
