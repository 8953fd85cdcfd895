"""Ball: a trust region around the starting point."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from hf_sft.penalties.base import Parameters
from hf_sft.penalties.step_rule import StepRule
from hf_sft.shards import joined, norms
from hf_sft.starting_point import StartingPoint


class Ball(StepRule):
    """‖θ_n − θ⁰_n‖₂ ≤ r·‖θ⁰_n‖₂ for every tensor: after each step θ ← θ⁰ + min(1, r‖θ⁰‖/‖d‖)·d.

    The projection on a ball, d = θ̂ − θ⁰: the proximal map of its indicator function. ``radius`` is
    relative to the tensor's own size, so that one number serves all layers (a tensor that is zero
    in the source stays zero); ``absolute: true`` takes it as it is. New parameters are free.
    Default 0.05, no paper's. The radii are fixed; TPGM and FTP (Tian et al. 2023, arXiv 2303.10720,
    2310.19182) learn them, so that their published gains are not this method's.
    Cost: two norms per tensor and step; state: θ⁰.

    Keys:
        radius: r; relative to ‖θ⁰_n‖.
        absolute: take r as it is.
    """

    formula: ClassVar[str] = "‖θ_n − θ⁰_n‖ ≤ radius·‖θ⁰_n‖"
    citation: ClassVar[str] = """@inproceedings{tian2023trainable,
  title     = {Trainable Projected Gradient Method for Robust Fine-tuning},
  author    = {Tian, Junjiao and Dai, Xiaoliang and Ma, Chih-Yao and He, Zecheng and Liu, Yen-Cheng
               and Kira, Zsolt},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023}, note = {arXiv:2303.10720}
}"""
    type: Literal["ball"] = "ball"
    radius: float = Field(0.05, gt=0, allow_inf_nan=False)
    absolute: bool = False

    def after_step_(
        self,
        theta: Parameters,
        start: StartingPoint,
        seen: Any,
        rates: Mapping[str, float],
        progress: float,
    ) -> None:
        held = list(self.anchored(theta, start))
        if not held:
            return
        lengths = [norms(now - anchor, anchor) for _, now, anchor in held]
        found, _ = joined(lengths, [theta[name] for name, _, _ in held])
        for (_, now, anchor), (length, size) in zip(held, found, strict=True):
            limit = self.radius * (torch.ones_like(size) if self.absolute else size)
            inside = anchor + (now - anchor) * (limit / length)
            now.copy_(torch.where(length > limit, inside, now))
