"""OrderlyStop: a training that is asked to stop saves the step it has done, on all processes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sft.interruption import SIGNALS, Stopped, asked, may_wait, turn_deaf
from hf_sft.training.step_flags import StepFlags


class OrderlyStop(StepFlags):
    """For a Trainer class: a signal put off by `interruption.put_off` ends `train` with `Stopped`.

    The optimizer step is finished, what is due after it (log, evaluation) is done, a checkpoint is
    written as any other, and all processes leave at the same step. So the training that goes on
    from there has the weights and the log of one that was never stopped. After the last step of an
    epoch what is due at its end comes first. Under ``save_strategy: best`` an evaluation that is
    no better saves nothing, and the next step is taken.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._saving = _SaveWhenAsked(self)
        self.add_callback(self._saving)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's (private in 5.24); a signal to the process group leaves workers alone."""
        loader = super()._get_dataloader(*args, **kwargs)
        given = getattr(
            loader, "base_dataloader", loader
        )  # accelerate's iterates over the one given
        if may_wait() and getattr(given, "num_workers", 0):
            given.worker_init_fn = partial(_begin, given.worker_init_fn)
        return loader

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """As Trainer's (private in 5.24); after the checkpoint of a stop nothing follows."""
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._saving.done:
            step = self.state.global_step
            folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            raise Stopped(asked() or SIGNALS[0], None if self.args.save_only_model else folder)


def _begin(further: Callable[[int], None] | None, worker: int) -> None:
    """A loader's worker begins; torch has given it its own handlers before (SIGTERM: end)."""
    turn_deaf()
    if further is not None:
        further(worker)


class _SaveWhenAsked(TrainerCallback):
    """``done``: the checkpoint for a stop has been written.

    A checkpoint of an epoch's last step is always put off to the end of the epoch: Trainer 5.24
    would write it before the epoch's evaluation, which draws random numbers and may be the best,
    and a training that goes on from there would never do it.
    """

    def __init__(self, trainer: OrderlyStop):
        self.trainer, self.due, self.done, self.owed = trainer, False, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.forget_flags()
        self.due = self.done = self.owed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save or control.should_log or control.should_evaluate:
            self.trainer.read_flags()
        if float(state.epoch).is_integer() or state.global_step >= state.max_steps:
            self.owed, control.should_save = control.should_save, False
        elif not control.should_training_stop:
            self._save(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.read_flags()
        control.should_save, self.owed = control.should_save or self.owed, False
        self._save(control)

    def _save(self, control: Any) -> None:
        self.due = self.trainer.stop_agreed
        control.should_save = control.should_save or self.due

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done = self.due
