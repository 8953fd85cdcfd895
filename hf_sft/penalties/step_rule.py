"""StepRule: a penalty that acts around the optimizer's step."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hf_sft.penalties.penalty import Parameters, Penalty
from hf_sft.shards import first_rows, local
from hf_sft.starting_point import StartingPoint


class StepRule(Penalty):
    """What is done to the weights around the optimizer's step, or to the forward pass.

    A step that a loss scaler skips is followed by no rule. `before_step` and `after_step_` run
    without autograd.
    """

    def attach(self, model: nn.Module, start: StartingPoint) -> None:
        """Change how the model computes; called once for every model, before training."""

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

    def anchored(
        self, theta: Parameters, start: StartingPoint
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, θ, θ⁰) of what trains now and came from the source; its old rows where it grew.

        Under FSDP2 the rows that lie here.
        """
        for name, parameter in theta.items():
            if name in start.copies and parameter.requires_grad:
                now, anchor = local(parameter), start.anchor(name, parameter)
                if name in start.rows:
                    rows = first_rows(start.rows[name], parameter)
                    now, anchor = now[:rows], anchor[:rows]
                yield name, now, anchor
