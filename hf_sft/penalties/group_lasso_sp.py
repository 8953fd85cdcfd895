"""Group-lasso-SP: whole output channels stay at the starting point."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.l2_sp import L2SP


class GroupLassoSP(WeightPrior):
    """Ω = λ·Σ_g α_g·‖θ_g − θ⁰_g‖₂ over what came from the source + head·‖θ_new‖²; α_g = √p_g.

    A group g is the fan-in of one output channel, p_g its size: a row of a linear layer, a filter
    of a convolution, a token's embedding. The first dimension counts the outputs; where it counts
    inputs (GPT-2's Conv1D, transposed convolutions) a group is the fan-out of one input. Of a
    parameter with one dimension (bias, normalisation) every entry is a group.

    Li, Grandvalet, Davoine 2018, eq. 6 (arXiv 1802.01483); λ is their α. Proximal step:
    d_g = max(0, 1 − ηλα_g/‖d̂_g‖)·d̂_g, so that channels which gain little stay θ⁰ bit for bit.

    Only proximal: the subgradient λα_g·d_g/‖d_g‖ (0 at 0), which `add_gradient_` gives to bare
    loops, has one length however small d_g is and never leaves a channel at 0.
    Default λ = 0.001, as of L1-SP: with α_g a channel whose entries all move alike is held as an
    entry is there. Published, ResNet-101 with smoothed subgradients: no gain over L2-SP.
    Cost: one pass over θ, θ⁰ and a norm per channel; state: θ⁰.
    """

    formula: ClassVar[str] = "λ·Σ_g √p_g·‖θ_g − θ⁰_g‖₂ + head·‖θ_new‖²"
    citation: ClassVar[str] = L2SP.citation
    default_lambda: ClassVar[float] = 0.001
    squared: ClassVar[bool] = False

    type: Literal["group-lasso-sp"] = "group-lasso-sp"
    apply: Literal["proximal"] = "proximal"

    def density(self, d: Tensor, weight: Tensor | None = None) -> Tensor:
        groups = by_channel(d)
        return groups.shape[1] ** 0.5 * torch.linalg.vector_norm(groups, dim=1).sum()

    def slope(self, d: Tensor, weight: Tensor | None = None) -> tuple[Tensor, float]:
        groups = by_channel(d)
        length = torch.linalg.vector_norm(groups, dim=1, keepdim=True)
        unit = (groups / length).masked_fill_(length == 0, 0.0)
        return unit.view_as(d), groups.shape[1] ** 0.5

    def shrink(self, d: Tensor, k: float, weight: Tensor | None = None) -> Tensor:
        groups = by_channel(d)
        length = torch.linalg.vector_norm(groups, dim=1, keepdim=True)
        kept = (1 - k * groups.shape[1] ** 0.5 / length).clamp_(min=0)  # −∞ at length 0
        return (groups * kept).view_as(d)


def by_channel(d: Tensor) -> Tensor:
    """(output channels, fan-in of one); (entries, 1) of a tensor with one dimension or none."""
    return d.reshape(-1, 1) if d.ndim < 2 else d.flatten(1)
