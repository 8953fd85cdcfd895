"""Ball: a trust region around the starting point."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from hf_sft.penalties.base import Parameters
from hf_sft.penalties.step_rule import StepRule
from hf_sft.starting_point import StartingPoint


class Ball(StepRule):
    """‖θ_n − θ⁰_n‖₂ ≤ r·‖θ⁰_n‖₂ for every tensor: after each step θ ← θ⁰ + min(1, r‖θ⁰‖/‖d‖)·d.

    The projection on a ball, d = θ̂ − θ⁰: the proximal map of its indicator function. ``radius`` is
    relative to the tensor's own size, so that one number serves all layers; ``absolute: true``
    takes it as it is. New parameters are free. Fixed radii; TPGM and FTP (Tian et al. 2023, arXiv
    2303.10720, 2310.19182) learn them. Cost: one norm per tensor and step; state: θ⁰.
    """

    formula: ClassVar[str] = "‖θ_n − θ⁰_n‖ ≤ radius·‖θ⁰_n‖"
    type: Literal["ball"] = "ball"
    radius: float = Field(0.05, gt=0, allow_inf_nan=False)
    absolute: bool = False

    @torch.no_grad()
    def after_step_(
        self,
        theta: Parameters,
        start: StartingPoint,
        seen: Any,
        rates: Mapping[str, float],
        progress: float,
    ) -> None:
        for name, parameter in theta.items():
            if name not in start.copies or not parameter.requires_grad:
                continue
            rows = start.rows.get(name)
            now, anchor = parameter[:rows] if rows else parameter, start.anchor(name, parameter)
            anchor = anchor[:rows] if rows else anchor
            size = 1.0 if self.absolute else float(torch.linalg.vector_norm(anchor))
            length = float(torch.linalg.vector_norm(now - anchor))
            if length > self.radius * size:
                now.copy_(anchor + (now - anchor) * (self.radius * size / length))
