"""L2-SP: the squared distance to the starting point."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from hf_sft.penalties.base import Parameters, WeightPrior, chunks, difference
from hf_sft.starting_point import StartingPoint


class L2SP(WeightPrior):
    """Ω = λ·‖θ − θ⁰‖² over what came from the source + head·‖θ_new‖² over what is new.

    Li, Grandvalet, Davoine 2018, "Explicit inductive bias for transfer learning with convolutional
    networks" (ICML, arXiv 1802.01483), whose sums carry ½: their α is 2λ, their αβ is 2·head.
    Gradient 2λ(θ − θ⁰); state: one copy of θ⁰ for the parameters that train.
    Defaults: λ = 0.01; head = 0, no decay of new parameters (the paper: αβ = 0.01, head 0.005).
    Published, ResNet-101, L2 → L2-SP: Stanford Dogs 81.4 → 85.1 in the paper, 83.21 → 86.14 with
    equally tuned arms (Li H. et al., ICLR 2020, table 5); Aircraft, far from the source, −0.3.
    """

    type: Literal["l2-sp"] = "l2-sp"
    lambda_: float = Field(0.01, alias="lambda", ge=0, allow_inf_nan=False)
    head: float = Field(0.0, ge=0, allow_inf_nan=False)

    def coefficient(self, name: str, fresh: bool, progress: float) -> float:
        return self.head if fresh else self.lambda_

    def value(self, theta: Parameters, start: StartingPoint, progress: float = 0.0) -> Tensor:
        terms = [
            c * (p if a is None else p - a).square().sum()
            for p, a, c in self.terms(theta, start, progress)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def add_gradient_(
        self, theta: Parameters, start: StartingPoint, scale: float = 1.0, progress: float = 0.0
    ) -> None:
        for parameter, anchor, c in self.terms(theta, start, progress):
            if parameter.grad is None:
                continue
            for p, a, g in chunks(parameter, anchor, parameter.grad):
                g.add_(difference(p, a), alpha=2 * c * scale)
