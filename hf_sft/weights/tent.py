"""TENT: a model adapts to unlabelled inputs by becoming surer of its own answers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft.errors import UserError
from hf_sft.layer_blocks import is_norm
from hf_sft.weights.norm_statistics import inputs_of, normalising_by_batch, statistical_norms


def tent_(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    learning_rate: float = 1e-3,
    passes: int = 1,
) -> list[float]:
    """Minimise the mean entropy of the predictions over γ and β of the norm layers.

    H(p) = −Σ_k p_k·log p_k, p = softmax(f_{γ,β}(x)); one Adam step a batch (Wang et al. 2021,
    arXiv 2006.10726). Batch norm normalises by its batch meanwhile; its statistics stay as they
    are, so measure them again afterwards (`reestimate_statistics_`). Where there is no batch norm,
    γ and β of layer norm and its kin move alone. Everything else, dropout included, stands still.
    Entropy has a trivial minimum, one class for everything: take few passes, a small rate and mixed
    batches.

    Returns:
        The mean entropy of every batch before its step, in nats.

    Raises:
        UserError: no norm layer with parameters, or no batch.
    """
    seen = []
    with _training(model, affine_parameters(model)) as affine:
        optimizer = torch.optim.Adam(affine, lr=learning_rate)
        for _ in range(passes):
            seen += [_step(model, batch, optimizer) for batch in batches]
    if not seen:
        raise UserError("no batch was given to adapt to.")
    return seen


@contextmanager
def _training(model: nn.Module, affine: Mapping[str, nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Only ``affine`` requires a gradient, only batch norm is in training mode, until the end."""
    if not affine:
        raise UserError(f"{type(model).__name__} has no norm layer with parameters to adapt.")
    trained = {p: p.requires_grad for p in model.parameters()}
    for parameter in trained:
        parameter.requires_grad_(False)
    for parameter in affine.values():
        parameter.requires_grad_(True)
    try:
        with normalising_by_batch(model, statistical_norms(model).values()):
            yield list(affine.values())
    finally:
        for parameter, wanted in trained.items():
            parameter.requires_grad_(wanted)
            parameter.grad = None


def affine_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """γ and β of every norm layer, by name."""
    norms = {name for name, module in model.named_modules() if is_norm(module)}
    return {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] in norms}


def entropy(logits: Tensor) -> Tensor:
    """−Σ_k p_k·log p_k of every row, in nats: (examples, classes) -> (examples,)."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@torch.no_grad()
def mean_entropy(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> float:
    """Over all rows of ``batches``, the model as it is."""
    found = [entropy(model(**inputs_of(model, batch)).logits) for batch in batches]
    return float(torch.cat(found).mean())


def _step(model: nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> float:
    loss = entropy(model(**inputs_of(model, batch)).logits).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
