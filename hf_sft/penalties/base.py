"""Penalty: what pulls θ toward θ⁰. A WeightPrior is a function of the weights alone."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hf_sft.component import Component
from hf_sft.starting_point import StartingPoint

Parameters = Mapping[str, Tensor]
CHUNK = 2**18  # elements handled at a time, so that θ − θ⁰ stays in the cache and off the peak


class Penalty(Component):
    """The ``penalty`` block."""


class WeightPrior(Penalty):
    """Ω(θ; θ⁰) = Σ_n c_n · ω(θ_n − a_n), with a_n = θ⁰_n, and a_n = 0 for a fresh parameter.

    ``value`` is the formula and the reference; training uses ``add_gradient_``, in place, without
    autograd, once per optimizer step: after accumulation and reduction, before clipping.
    """

    @abstractmethod
    def coefficient(self, name: str, fresh: bool, progress: float) -> float:
        """c_n of one parameter; ``progress`` is the share of training done, 0..1."""

    @abstractmethod
    def value(self, theta: Parameters, start: StartingPoint, progress: float = 0.0) -> Tensor:
        """Ω as a scalar tensor (); differentiable."""

    @abstractmethod
    def add_gradient_(
        self, theta: Parameters, start: StartingPoint, scale: float = 1.0, progress: float = 0.0
    ) -> None:
        """Add ``scale`` · ∂Ω/∂θ to every ``.grad`` that exists; a parameter without one is left."""

    def terms(
        self, theta: Parameters, start: StartingPoint, progress: float
    ) -> Iterator[tuple[Tensor, Tensor | None, float]]:
        """(θ_n, a_n or None for 0, c_n) of every parameter that trains with c_n > 0."""
        for name, parameter in theta.items():
            fresh = name in start.fresh
            if not parameter.requires_grad or (not fresh and name not in start.copies):
                continue
            if (c := self.coefficient(name, fresh, progress)) > 0:
                yield parameter, None if fresh else start.anchor(name, parameter), c


def chunks(*tensors: Tensor | None) -> Iterator[tuple[Tensor | None, ...]]:
    """The same slices along the first dimension of tensors of one shape, about CHUNK elements each.

    None stays None. Slicing, not reshaping, so that any memory layout is kept.
    """
    first = tensors[0]
    if first.ndim == 0 or first.numel() <= CHUNK:
        yield tensors
        return
    rows = max(1, CHUNK * first.shape[0] // first.numel())
    split = [t.split(rows) if t is not None else None for t in tensors]
    for i in range(len(split[0])):
        yield tuple(parts[i] if parts is not None else None for parts in split)


@torch.no_grad()
def difference(theta: Tensor, anchor: Tensor | None) -> Tensor:
    """θ − a, or θ where the anchor is zero."""
    return theta if anchor is None else theta - anchor
