"""SPD: steps that lead away from the source against the gradient are taken back."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hf_sft.penalties.base import Parameters
from hf_sft.penalties.step_rule import StepRule
from hf_sft.shards import joined, local, norms
from hf_sft.starting_point import StartingPoint


class SPD(StepRule):
    """Selective projection decay, for every tensor, after the optimizer's step θ → θ̂:

    if ⟨g, θ − θ⁰⟩ > 0:  θ ← θ̂ − λ·r·(θ̂ − θ⁰),  r = max(0, ‖θ̂ − θ⁰‖ − ‖θ − θ⁰‖)/‖θ̂ − θ⁰‖.

    Tian, Huang, Kira 2024, "Rethinking weight decay for robust fine-tuning of foundation models"
    (NeurIPS, arXiv 2411.01713). Where going back to θ⁰ would lower the loss and the step has gone
    further away all the same (momentum, Adam's normalisation), it is shortened: λ = 1 projects back
    to the radius before the step, and the tensors whose gradient points outward move freely.
    g is the gradient that the optimizer is given (reduced, unscaled, clipped, weight priors in it),
    as in the paper's derivation, which differentiates the loss by λ; not the optimizer's update.
    λ is no rate: it does not scale with the learning rate, and a step of length 0 is not decayed.
    At θ̂ = θ⁰ there is nothing to decay. New parameters are free. Default λ = 1, the paper's full
    projection. Published: above L2-SP on DomainNet, ImageNet and PASCAL's corruptions out of
    distribution, in the paper's own comparison (numbers not checked).
    Cost: an inner product and two norms per tensor and step; state: θ⁰.

    Keys:
        lambda: the share of the step's growth of ‖θ − θ⁰‖ that is taken back.
    """

    formula: ClassVar[str] = "θ ← θ̂ − λ·r·(θ̂ − θ⁰) where ⟨g, θ − θ⁰⟩ > 0"
    citation: ClassVar[str] = """@inproceedings{tian2024rethinking,
  title     = {Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models},
  author    = {Tian, Junjiao and Huang, Chengyue and Kira, Zsolt},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2024}, note = {arXiv:2411.01713}
}"""
    type: Literal["spd"] = "spd"
    lambda_: float = Field(1.0, alias="lambda", ge=0, allow_inf_nan=False)

    def before_step(
        self, theta: Parameters, start: StartingPoint, progress: float
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By name: ⟨g, d⟩ and ‖d‖, d = θ − θ⁰, of what the step will move; of the rows here."""
        found = {}
        for name, now, anchor in self.anchored(theta, start):
            if theta[name].grad is None:
                continue
            gradient, d = local(theta[name].grad), now - anchor
            gradient = gradient[: len(now)] if now.ndim else gradient
            found[name] = (gradient * d).sum(), torch.linalg.vector_norm(d)
        return found

    def after_step_(
        self,
        theta: Parameters,
        start: StartingPoint,
        seen: Mapping[str, tuple[Tensor, Tensor]],
        rates: Mapping[str, float],
        progress: float,
    ) -> None:
        held = [found for found in self.anchored(theta, start) if found[0] in seen]
        if not held:
            return
        along = [seen[name][0].reshape(1) for name, _, _ in held]
        lengths = [torch.cat([seen[n][1].reshape(1), norms(now - a)]) for n, now, a in held]
        lengths, along = joined(lengths, [theta[name] for name, _, _ in held], along)
        for (_, now, anchor), (before, length), (inward,) in zip(held, lengths, along, strict=True):
            further = (length - before).clamp(min=0)
            share = further / length.clamp(min=torch.finfo(length.dtype).tiny)
            now.sub_((now - anchor) * (self.lambda_ * share * (inward > 0)))
