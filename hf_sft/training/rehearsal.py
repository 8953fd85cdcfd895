"""Rehearsal: everything that training will need is built and tried once, and leaves no trace."""

from typing import Any

import torch

from hf_sft.errors import RecipeError
from hf_sft.training.loss_scale import probe_batch, undisturbed


@torch.no_grad()
def rehearse(trainer: Any) -> None:
    """Build loader, optimizer and schedule, send two rows through the model, take all of it down.

    Random state and modes stay as they were.

    Raises:
        RecipeError: at the first step nothing would train.
        Exception: whatever Trainer, the model or a collator says of what cannot be.
    """
    if not any(parameter.requires_grad for parameter in trainer.model.parameters()):
        raise RecipeError(
            f"freeze: under {trainer.freeze.type!r} nothing trains at the first step. A head that "
            "is tied to the word table has nothing of its own to train alone; take train-last."
        )
    given = trainer.optimizer, trainer.lr_scheduler
    with undisturbed(trainer.model):
        trainer.model.eval()
        trainer.compute_loss(trainer.model, probe_batch(trainer, rows=2))
        loader = trainer.get_train_dataloader()
        steps = trainer.set_initial_training_values(trainer.args, loader)[-1]
        trainer.create_optimizer_and_scheduler(steps)
    trainer.optimizer, trainer.lr_scheduler = given
    trainer._created_lr_scheduler = False  # private in transformers 5.24: as it was before
    trainer.accelerator.free_memory()
    trainer.follow_plan()
