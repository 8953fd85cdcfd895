"""Where training goes on; at a checkpoint of the last step nothing is left to train."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from hf_sft.weights.averaging import Averaging


def chosen(given: str | PathLike | bool | None, folder: str) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` means; None where training starts."""
    if given is True:
        given = get_last_checkpoint(folder)
    return Path(given) if isinstance(given, str | PathLike) else None


def is_last(trainer: Any, checkpoint: Path) -> bool:
    """Whether the steps asked for are done; Trainer 5.24 would take one more inside an epoch."""
    step = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]
    if trainer.args.max_steps > 0:
        return step >= trainer.args.max_steps
    loader = trainer.get_train_dataloader()
    return step >= trainer.set_initial_training_values(trainer.args, loader)[-1]


def take_up(trainer: Any, checkpoint: Path) -> TrainOutput:
    """The trainer as it was when its training ended there: weights, state and plan."""
    # Private in transformers 5.24: the only ways to a checkpoint's weights, and to the best ones.
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.follow_plan()
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Averaging):
            callback.on_train_begin(trainer.args, trainer.state, trainer.control, trainer.model)
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
    steps = trainer.state.global_step
    return TrainOutput(steps, float(trainer.running_loss.total) / max(1, steps), {})
