"""Diagonal Fisher information: how much the model's answers depend on each parameter.

F_j = (1/n) Σ_i E[(∂_j log p(y | x_i; θ))²] over examples x_i, at one point θ. The expectation:

* ``true``: the exact sum Σ_y p(y|x)·(∂_j log p(y|x))² over the model's own labels y: one backward
  pass per example and class.
* ``sampled``: one y ~ p(y|x) drawn per example, and per position where there are several: unbiased,
  one backward pass per example.
* ``label-free``: of a Gaussian of variance 1 around the pooled embedding e(x; θ), without classes:
  Σ_m (∂_j e_m)² = E_v[(∂_j vᵀe)²], with one v of random signs drawn per example.

Gradients are those of single examples: the square of a batch's mean gradient would be smaller by
about the batch size. Memory: F, and the gradient of one example.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hf_sft.embeddings import Taps
from hf_sft.errors import UserError
from hf_sft.penalties.answers import without_labels

Estimator = Literal["true", "sampled", "label-free"]
Example = Mapping[str, Any]


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[Example],
    at: Mapping[str, Tensor] | None = None,
    estimator: Estimator = "true",
    seed: int = 0,
) -> dict[str, Tensor]:
    """F by parameter name, in float32 or wider.

    Args:
        model: in eval mode; its weights and gradients stay as they are.
        batches: model inputs of any batch size; labels are not looked at.
        at: name -> θ of the parameters wanted; None: all that require a gradient, as they are.
        seed: of the draws.

    Raises:
        UserError: the model has no distribution over classes, or there is no example.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theta = {n: t.detach().requires_grad_() for n, t in (trained if at is None else at).items()}
    fisher = {name: torch.zeros_like(t, dtype=_wide(t)) for name, t in theta.items()}
    generator, count = torch.Generator().manual_seed(seed), 0
    taps = Taps(model, embeddings=estimator == "label-free")
    try:
        for example in _examples(model, batches):
            count += 1
            with torch.enable_grad():
                outputs = functional_call(model, theta, (), example)
                if estimator == "label-free":
                    parts = [_projection(taps.embeddings(example), generator)]
                else:
                    log_p = log_probabilities(model, outputs)
                    parts = _labels(estimator, log_p, example, generator)
                _add_squares_(fisher, theta, parts)
    finally:
        taps.remove()
    if not count:
        raise UserError("penalty: fisher-sp has seen no example: the train set is empty.")
    return {name: total.div_(count) for name, total in fisher.items()}


Part = tuple[float, Tensor]  # a weight, and a scalar whose squared gradient it weighs


def _add_squares_(
    fisher: Mapping[str, Tensor], theta: Mapping[str, Tensor], parts: list[Part]
) -> None:
    """F_j += Σ weight·(∂_j scalar)²."""
    for number, (weight, value) in enumerate(parts, 1):
        gradients = torch.autograd.grad(
            value, list(theta.values()), retain_graph=number < len(parts), allow_unused=True
        )
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            if gradient is not None:
                gradient = gradient.to(total.dtype)
                total.addcmul_(gradient, gradient, value=weight)


def _projection(embedding: Tensor, generator: torch.Generator) -> Part:
    """vᵀe with random signs v."""
    signs = torch.randint(2, embedding.shape, generator=generator) * 2 - 1
    return 1.0, (embedding.to(_wide(embedding)) * signs.to(embedding.device)).sum()


def _labels(
    estimator: Estimator, log_p: Tensor, example: Example, generator: torch.Generator
) -> list[Part]:
    """log p(y|x) of every y, or of drawn ones; ``log_p`` is (positions, classes)."""
    if estimator == "sampled":
        drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator)
        of_drawn = log_p.gather(1, drawn.to(log_p.device)).squeeze(1)
        return [(1.0, of_drawn[_counted(example, of_drawn)].sum())]
    if len(log_p) > 1:
        raise UserError(
            f"penalty.estimator: true needs one answer per example, and this model gives "
            f"{len(log_p)}, one per position. Take sampled, or label-free."
        )
    return [(value.detach().exp().item(), value) for value in log_p[0]]


def log_probabilities(model: nn.Module, outputs: Any) -> Tensor:
    """(positions, classes) of one example.

    Raises:
        UserError: the model's output is no distribution over classes.
    """
    logits, config = getattr(outputs, "logits", outputs), getattr(model, "config", None)
    kind = getattr(config, "problem_type", None)
    shaped = torch.is_tensor(logits) and logits.ndim in (2, 3) and logits.shape[-1] > 1
    if not shaped or kind in ("regression", "multi_label_classification"):
        raise UserError(
            f"penalty.estimator: {type(model).__name__} gives no distribution over two classes or "
            "more (logits: examples, [positions,] classes). Take estimator: label-free."
        )
    return logits.to(_wide(logits)).log_softmax(-1).flatten(0, -2)


def _counted(example: Example, positions: Tensor) -> Tensor:
    """Which positions are no padding."""
    mask = example.get("attention_mask")
    if len(positions) > 1 and torch.is_tensor(mask) and mask.numel() == len(positions):
        return mask.flatten().bool().to(positions.device)
    return torch.ones_like(positions, dtype=torch.bool)


def _examples(model: nn.Module, batches: Iterable[Example]) -> Iterator[dict[str, Any]]:
    """Batches of one example each, without their labels."""
    for batch in batches:
        inputs = without_labels(batch, model)
        size = next(len(v) for v in inputs.values() if torch.is_tensor(v) and v.ndim)
        for i in range(size):
            yield {
                key: v[i : i + 1] if torch.is_tensor(v) and v.ndim and len(v) == size else v
                for key, v in inputs.items()
            }


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
