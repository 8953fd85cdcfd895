"""StepRule: a penalty that acts around the optimizer's step."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_sft.penalties.base import Parameters, Penalty
from hf_sft.starting_point import StartingPoint


class StepRule(Penalty):
    """What is done to the weights around the optimizer's step, or to the forward pass."""

    def attach(self, model: nn.Module, start: StartingPoint) -> None:
        """Change how the model computes; called once, before training."""

    def before_step(self, theta: Parameters, start: StartingPoint, progress: float) -> Any:
        """What `after_step_` needs to know of the weights and gradients before the step."""
        return None

    def after_step_(
        self,
        theta: Parameters,
        start: StartingPoint,
        seen: Any,
        rates: Mapping[str, float],
        progress: float,
    ) -> None:
        """Correct the weights in place; ``rates``: the learning rate each one was moved with."""
