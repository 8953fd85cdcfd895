"""The loss as it runs: parts told apart, summed over all legs of a run."""

from typing import Any

import torch
from torch import Tensor

from hf_sft.errors import UserError


class RunningLoss:
    """Sums on the device; nothing waits for it until it is logged or saved.

    Attributes:
        total: Σ of the task loss over all optimizer steps of the run, float64.
    """

    def __init__(self, total: float = 0.0):
        self.total: Tensor | float = total
        self._step: Tensor | float = 0.0
        self._held_now: Tensor | None = None
        self._held_step: Tensor | float = 0.0
        self._held_sum: Tensor | float = 0.0
        self._held_steps = 0.0

    def hold(self, held: Tensor) -> None:
        """What function priors add to the loss of the micro-batch that is being computed."""
        self._held_now = held.detach()

    def add(self, loss: Tensor, parts: int) -> Tensor:
        """Take a micro-batch's loss as `training_step` gives it; the task's part of it.

        ``parts``: by how many micro-batches Trainer has divided the loss.
        """
        if self._held_now is not None:
            held = self._held_now / parts
            loss = loss - held
            self._held_step, self._held_now = self._held_step + wide(held), None
        self._step = self._step + wide(loss)
        return loss

    def leave_out(self) -> None:
        """The step that is under way is not to be in the sums."""
        self._step = self._held_step = 0.0

    def step_done(self) -> None:
        """One more optimizer step is in the sums."""
        self.total, self._held_sum = self.total + self._step, self._held_sum + self._held_step
        self._step = self._held_step = 0.0
        self._held_steps += 1

    def held_mean(self, accelerator: Any) -> float:
        """Mean over the steps since the last call of what function priors have added."""
        if not self._held_steps or not torch.is_tensor(self._held_sum):
            return 0.0
        mean = accelerator.reduce(self._held_sum / self._held_steps, "mean").item()
        self._held_sum, self._held_steps = 0.0, 0
        return mean


def wide(value: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return value if value.device.type == "mps" else value.double()


def diverged(what: str, step: int | str, args: Any) -> UserError:
    """The error that says so, and what to try."""
    return UserError(
        f"{what} not finite at step {step}: training has diverged, or a row is broken. The last "
        f"checkpoint is kept. Look at those rows, lower training.learning_rate (now "
        f"{args.learning_rate:g}) or a penalty's strength, and start anew with --overwrite; or "
        "leave such steps out: nonfinite.then=skip."
    )
