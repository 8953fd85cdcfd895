"""KeptRows: a data set whose batches bring the outputs of the frozen prefix with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sft.caching.chunks import Chunks
from hf_sft.caching.replay import FEATURES, ROWS
from hf_sft.caching.seam import NoCache
from hf_sft.caching.views import Views
from hf_sft.training.alike_lengths import row_lengths


class KeptRows:
    """Collates row numbers: with features from the chunks, or as the data set gives the rows.

    A batch with features has their row numbers as well, so that it can be made whole again. The
    main input is not read where it is a picture or a sound: an empty one of its shape stands there.

    Args:
        rows: the data set, or `Views` of it.
        collate: the trainer's, columns that the model does not take removed.
        main: the name of the model's main input.

    Attributes:
        heavy: the shape of the main input, where it is not read again.
        lengths: tokens of each row, where they are known.
        chunks: the features; None before there are any.
        identity: what they depend on.
    """

    def __init__(self, rows: Any, collate: Callable, main: str):
        self.rows, self.collate, self.main = rows, collate, main
        first = rows[0].get(main) if len(rows) else None
        first = torch.as_tensor(first) if first is not None else torch.empty(0)
        self.heavy = tuple(first.shape) if first.is_floating_point() and first.ndim else None
        self.kind = first.dtype
        self.lengths = row_lengths(rows)
        self.chunks: Chunks | None = None
        self.identity: dict[str, Any] = {}
        # Shared, so that workers of a loader see it change.
        self._kept = torch.zeros(1, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.rows.rows if isinstance(self.rows, Views) else self.rows)

    @property
    def keeps(self) -> bool:
        """Whether batches have features now."""
        return bool(self._kept)

    @keeps.setter
    def keeps(self, value: bool) -> None:
        self._kept.fill_(value)

    def whole(self, numbers: Sequence[int]) -> Any:
        """A batch of rows as the data set gives them."""
        return self.collate(self.fetched(numbers))

    def fetched(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """Rows as the data set gives them."""
        if hasattr(self.rows, "__getitems__"):
            return self.rows.__getitems__(list(numbers))
        return [self.rows[number] for number in numbers]

    def rest_of(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a chunk keeps of a row beside its features; None where all is read again.

        Raises:
            NoCache: something that no file holds safely.
        """
        if self.heavy is None:
            return None
        taken = getattr(self.collate, "signature_columns", row)  # by what Trainer wraps around it
        return {key: plain(row[key]) for key in row if key in taken and key != self.main}

    def __call__(self, numbers: Sequence[int]) -> Any:
        """Row numbers of an epoch -> a batch, for a loader over ``range(len(self))``."""
        if not self.keeps:
            return self.now(numbers)
        if isinstance(self.rows, Views):
            numbers = [self.rows.number(row) for row in numbers]
        return self.batch(numbers, self.chunks.row)

    def now(self, numbers: Sequence[int]) -> Any:
        """A batch of rows, by whichever number, as the epoch under way gives them."""
        if not isinstance(self.rows, Views):
            return self.whole(numbers)
        rows = self.rows.rows
        return self.collate([rows[number % len(rows)] for number in numbers])

    def batch(self, numbers: Sequence[int], features: Callable[[int], Tensor]) -> Any:
        """A batch with the features of these rows."""
        if self.heavy is None:
            batch = self.whole(numbers)
        else:
            batch = self.collate([self._rest(number) for number in numbers])
            batch[self.main] = torch.zeros((), dtype=self.kind).expand(len(numbers), *self.heavy)
        batch[FEATURES] = joined([features(number) for number in numbers], self._mask(batch))
        batch[ROWS] = torch.tensor(numbers)
        return batch

    def _rest(self, number: int) -> dict[str, Any]:
        kept = self.chunks.rest(number) if self.chunks is not None else None
        return self.rest_of(self.rows[number]) if kept is None else kept

    def _mask(self, batch: Mapping[str, Any]) -> Tensor | None:
        ragged = self.chunks is not None and self.chunks.lengths is not None
        return batch["attention_mask"] if ragged else None


def plain(value: Any) -> Any:
    """A value as numbers, words, tensors and lists of them.

    Raises:
        NoCache: it is something else.
    """
    if isinstance(value, np.ndarray | np.generic):
        return torch.as_tensor(value)
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    raise NoCache(f"rows hold a {type(value).__name__}, which is not stored")


def joined(features: Sequence[Tensor], mask: Tensor | None) -> Tensor:
    """Features of rows as one tensor: (rows, …), or (rows, positions, …) padded with 0 by the mask.

    Args:
        features: of each row; (its positions, …) where there is a mask.
        mask: (rows, positions), not 0 where a position is real.
    """
    if mask is None:
        return torch.stack(list(features))
    found = features[0].new_zeros((*mask.shape, *features[0].shape[1:]))
    found[mask.bool()] = torch.cat(list(features))
    return found
