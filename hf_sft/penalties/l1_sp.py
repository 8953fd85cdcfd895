"""L1-SP: the sum of absolute distances to the starting point."""

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import softshrink

from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.l2_sp import L2SP


class L1SP(WeightPrior):
    """Ω = λ·‖θ − θ⁰‖₁ over what came from the source + head·‖θ_new‖² over what is new.

    Li, Grandvalet, Davoine 2018, eq. 5 (arXiv 1802.01483); λ is their α, which carries no ½ here.
    Proximal step, soft thresholding: d = sign(d̂)·max(|d̂| − ηλ, 0) with d = θ − θ⁰, so that most
    entries of θ stay θ⁰ bit for bit. It moves all others by ηλ toward θ⁰, however far they are: no
    half-life follows.

    Only proximal: along the subgradient λ·sign(d), which `add_gradient_` gives to bare loops, d
    never is 0 but jumps from side to side by ηλ, and Adam sees a gradient of one size everywhere.
    Default λ = 0.001: an entry stays θ⁰ while its step over η (SGD's gradient, Adam's m/√v) is
    below λ; under Adam, λ ≥ 1 holds nearly all. Published, ResNet-101 with smoothed subgradients:
    no gain over L2-SP. Cost: one pass over θ, θ⁰ per step; state: θ⁰.
    """

    formula: ClassVar[str] = "λ·‖θ − θ⁰‖₁ + head·‖θ_new‖²"
    citation: ClassVar[str] = L2SP.citation
    default_lambda: ClassVar[float] = 0.001
    squared: ClassVar[bool] = False

    type: Literal["l1-sp"] = "l1-sp"
    apply: Literal["proximal"] = "proximal"

    def density(self, d: Tensor, weight: Tensor | None = None) -> Tensor:
        return (d.abs() if weight is None else weight * d.abs()).sum()

    def slope(self, d: Tensor, weight: Tensor | None = None) -> tuple[Tensor, float]:
        return d.sign_() if weight is None else d.sign_().mul_(weight), 1.0

    def shrink(self, d: Tensor, k: float, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            return softshrink(d, k)
        return d.sign() * (d.abs() - k * weight).clamp_(min=0)
