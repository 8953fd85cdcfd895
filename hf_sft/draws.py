"""Draws: what a training row is given at random, as a function of seed, epoch and row alone."""

import numpy as np
import torch


class Draws:
    """Random numbers of training rows that depend on no batch, worker, process or earlier draw.

    The training's seed and the epoch are told by `begin` (`TellEpoch` does it); before that, both
    are 0. They lie in shared memory, where workers of a loader that live on see them change. A
    copy is the same object, so that what was handed to a dataset's format still hears them.
    """

    def __init__(self) -> None:
        self._now = torch.zeros(2, dtype=torch.int64).share_memory_()  # seed, epoch

    def __deepcopy__(self, memo: dict) -> "Draws":
        return self

    def begin(self, seed: int, epoch: int) -> None:
        """From here on, draw for this epoch of the training with this seed."""
        self._now.copy_(torch.tensor([seed, epoch]))

    @property
    def epoch(self) -> int:
        """The epoch under way."""
        return int(self._now[1])

    def seed(self, row: int) -> int:
        """A seed of 63 bits for one row of the training split in this epoch."""
        return mixed(*self._now.tolist(), row)

    def generator(self, row: int) -> torch.Generator:
        """Torch's generator for one row of the training split in this epoch."""
        return torch.Generator().manual_seed(self.seed(row))


def mixed(*numbers: int) -> int:
    """Whole numbers >= 0 -> a seed of 63 bits, by numpy's SeedSequence; unlike for any change."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
