"""Which rows of the train set an optimizer step was made of, found out afterwards."""

from itertools import islice
from typing import Any

from accelerate.utils import gather_object


def step_rows(trainer: Any, step: int) -> list[int] | None:
    """Row numbers of the train set in optimizer step ``step`` (from 1), of all processes.

    The order of an epoch is drawn again from its seed: nothing is kept while all goes well. A
    collective over several processes; drawing random numbers is left as it was.

    Returns:
        None where the loader has no order that can be drawn again.
    """
    loader = trainer.callback_handler.train_dataloader
    batches = getattr(loader, "batch_sampler", None)
    if not trainer.args.accelerator_config.use_seedable_sampler:
        return None
    if batches is None or not hasattr(trainer.train_dataset, "__getitem__"):
        return None
    parts = trainer.args.gradient_accumulation_steps
    per_epoch = max(1, -(-len(loader) // parts))
    epoch, within = divmod(step - 1, per_epoch)
    given, trainer.state.epoch = trainer.state.epoch, float(epoch)
    try:
        loader.set_epoch(epoch)
        found = list(islice(batches, within * parts, (within + 1) * parts))
    finally:
        trainer.state.epoch = given
    rows = [int(row) for batch in found for row in batch]
    return gather_object(rows) if trainer.args.world_size > 1 else rows
