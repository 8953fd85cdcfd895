"""LoRA-SP: adapters are pulled to the source as a product, not factor by factor."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hf_sft.errors import RecipeError, UserError, listing
from hf_sft.penalties.base import Parameters, WeightPrior
from hf_sft.penalties.lora_adapters import lora_adapters
from hf_sft.penalties.square import Square
from hf_sft.penalties.terms import Term
from hf_sft.starting_point import StartingPoint


class LoRASP(Square, WeightPrior):
    """Ω = λ·Σ ‖s·B·A‖_F² over the active adapters + head·‖θ_new‖² over what else is new.

    With LoRA (Hu et al. 2022, arXiv 2106.09685; in PEFT) the weights are W⁰ + ΔW with ΔW = sBA,
    s = α/r, or α/√r (rsLoRA), so that Ω is L2-SP's λ‖W − W⁰‖²; λ carries over. Decaying A and B
    by themselves, as weight decay does, is another prior: (‖A‖² + ‖B‖²)/2 ≥ ‖BA‖_*, the sum of the
    singular values. Several active adapters are summed one by one. Not from a paper.

    ΔW is never formed: ‖BA‖² = Σ (BᵀB)∘(AAᵀ), gradients 2λs²·(BᵀB)A and 2λs²·B(AAᵀ), of
    r²·(fan-in + out) instead of r·fan-in·out operations per step; memory r² and a factor's size.
    State: none, the source is W⁰ itself. Default λ = 0.01, as L2-SP's; no gain is published.
    Only in the gradient form: the product has no proximal map of its factors in closed form.
    """

    formula: ClassVar[str] = "λ·Σ ‖s·B·A‖² + head·‖θ_new‖²"
    squared: ClassVar[bool] = False  # of two factors that move: no half-life follows

    type: Literal["lora-sp"] = "lora-sp"
    apply: Literal["gradient"] = "gradient"

    def attach(self, model: nn.Module, start: StartingPoint) -> None:
        """Find the adapters.

        Raises:
            UserError: there are none, or of a kind whose ΔW is not s·B·A on the source's weights.
        """
        start.adapters = tuple(lora_adapters(model))
        names = {name for adapter in start.adapters for name in (adapter.a, adapter.b)}
        if old := sorted(names - start.fresh):
            raise UserError(
                f"penalty: lora-sp: {listing(old)} count as parameters from the source, which "
                "would be pulled to random values. Give fresh= the names of adapters and new heads."
            )

    def anchored(self, start: StartingPoint) -> set[str]:
        return {name for a in start.adapters for name in (a.a, a.b)} | start.probed.keys()

    def coefficients(self, start: StartingPoint) -> dict[str, float]:
        found = super().coefficients(start)
        for adapter in start.adapters:
            if found[adapter.a] != found[adapter.b]:
                raise RecipeError(
                    f"penalty.rules: {adapter.a} and {adapter.b} are factors of one product and "
                    "need one λ. Let the rule's name fit both."
                )
        return found

    def joined(self, name: str, start: StartingPoint) -> set[str]:
        return {name}.union(*({a.a, a.b} for a in start.adapters if name in (a.a, a.b)))

    def terms(self, theta: Parameters, start: StartingPoint, progress: float) -> Iterator[Term]:
        factors = {name for a in start.adapters for name in (a.a, a.b)}
        return (t for t in super().terms(theta, start, progress) if t.name not in factors)

    def value(self, theta: Parameters, start: StartingPoint, progress: float = 0.0) -> Tensor:
        total = super().value(theta, start, progress)
        for c, a, b in self._pairs(theta, start):
            A, B = _matrix(a), _matrix(b)
            total = total + c * ((B.T @ B) * (A @ A.T)).sum()
        return total

    @torch.no_grad()
    def add_gradient_(
        self, theta: Parameters, start: StartingPoint, scale: float = 1.0, progress: float = 0.0
    ) -> None:
        super().add_gradient_(theta, start, scale, progress)
        for c, a, b in self._pairs(theta, start):
            A, B = _matrix(a), _matrix(b)
            for factor, gradient in ((a, B.T @ B @ A), (b, B @ (A @ A.T))):
                if factor.requires_grad and factor.grad is not None:
                    gradient = gradient.view_as(factor).to(factor.dtype)
                    factor.grad.add_(gradient, alpha=2 * c * scale)

    def _pairs(
        self, theta: Parameters, start: StartingPoint
    ) -> Iterator[tuple[float, Tensor, Tensor]]:
        """λs², A and B of every adapter that trains."""
        known = start.coefficients(self)
        for adapter in start.adapters:
            if not theta.keys() >= {adapter.a, adapter.b}:
                continue
            a, b, c = theta[adapter.a], theta[adapter.b], known[adapter.a]
            if (a.requires_grad or b.requires_grad) and 0 < c < math.inf:
                yield c * adapter.scale**2, a, b


def _matrix(factor: Tensor) -> Tensor:
    """A as (r, fan-in), B as (out, r), in float32 or wider."""
    return factor.flatten(1).to(torch.promote_types(factor.dtype, torch.float32))
