"""FiniteSteps: a step whose loss or gradient is not finite ends the training, or is left out."""

import logging
from typing import Any

from hf_sft.errors import listing
from hf_sft.nonfinite import NonFinite
from hf_sft.training.running_loss import diverged
from hf_sft.training.step_flags import StepFlags
from hf_sft.training.step_rows import step_rows

log = logging.getLogger(__name__)


class FiniteSteps(StepFlags):
    """For a Trainer class: ``nonfinite`` says whether such a step stops the training or is skipped.

    On an accelerator, stopping waits for nothing: the step is found while the next one is under
    way, and nothing is saved in between. Skipping has to know before the optimizer's step, which
    costs one wait per step there; Trainer's own ``logging_nan_inf_filter`` (on by default) has
    already waited for the loss by then. Under fp16 scaling a gradient that overflows is left to the
    scaler; a loss that is not finite is not.

    Attributes:
        skipped_steps: what was left out, as {"step": its number from 1, "rows": row numbers of the
            train set (None: unknown)}.
    """

    def __init__(self, *args: Any, nonfinite: NonFinite | None = None, **kwargs: Any):
        self.nonfinite = nonfinite or NonFinite()
        self.skipped_steps: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    @property
    def reads_at_once(self) -> bool:
        return self.nonfinite.then == "skip" or super().reads_at_once

    def on_unfit_step(self, step: int) -> None:
        """Stop, or leave the step out.

        Raises:
            UserError: on all processes, with the step and the rows it was made of.
        """
        rows = step_rows(self, step)
        made_of = "" if rows is None else f", made of rows {listing(rows, 64)} of train (from 0)"
        told = f"{step}{made_of}"
        if self.nonfinite.then == "stop":
            raise diverged("The loss or its gradient is", told, self.args)
        self.skipped_steps.append({"step": step, "rows": rows})
        in_a_row = [skipped["step"] for skipped in self.skipped_steps[-self.nonfinite.in_a_row :]]
        if in_a_row == list(range(step - self.nonfinite.in_a_row + 1, step + 1)):
            many = f"{told}, as in {self.nonfinite.in_a_row} steps in a row (nonfinite.in_a_row)"
            raise diverged("The loss or its gradient is", many, self.args)
        log.warning("Step %s is left out: its loss or gradient is not finite.", told)
        self.model.zero_grad(set_to_none=True)  # the optimizer passes over what has no gradient
        self.running_loss.leave_out()
