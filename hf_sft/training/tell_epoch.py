"""TellEpoch: what draws at random for training rows is told the seed and the epoch."""

from typing import Any

from transformers import TrainerCallback


class TellEpoch(TrainerCallback):
    """Where the trainer's data set or collator has ``draws`` (`Draws`), begin every epoch there.

    ``state.epoch`` counts on from a checkpoint, so a resumed run draws what the other one drew.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the epoch's first batch is fetched, in every process."""
        seed = args.seed if args.data_seed is None else args.data_seed
        for part in (self.trainer.train_dataset, self.trainer.data_collator):
            if (draws := getattr(part, "draws", None)) is not None:
                draws.begin(seed, int(state.epoch or 0))
