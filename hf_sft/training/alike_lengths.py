"""Batches of rows of like lengths, so that little is computed on padding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler, SequentialSampler

COLUMNS = ("input_ids", "decoder_input_ids")  # what a batch is padded in
MOST = 50  # batches that are sorted together


def row_lengths(rows: Any) -> np.ndarray | None:
    """(rows,) tokens of each row, of its longest ending where it has several; None unknown.

    Of a data set only the lists' ends are read, no token.
    """
    if hasattr(rows, "with_format"):
        columns = [name for name in COLUMNS if name in rows.column_names]
        if not columns or rows.format["type"] == "custom":
            return None
        parts = rows.select_columns(columns).with_format("arrow").iter(10_000)
        found = [sum(_list_lengths(part.column(name)) for name in columns) for part in parts]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    if len(rows) and isinstance(rows[0], Mapping) and COLUMNS[0] in rows[0]:
        return np.array([sum(len(row[name]) for name in COLUMNS if name in row) for row in rows])
    return None


def _list_lengths(column: Any) -> np.ndarray:
    import pyarrow.compute as pc  # noqa: PLC0415 (with `datasets` only)

    column = column.combine_chunks()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = pc.list_flatten(column)
    if not hasattr(inner.type, "value_type"):
        return lengths
    longest = np.zeros(len(lengths), dtype=np.int64)
    ends = pc.list_value_length(inner).to_numpy(zero_copy_only=False)
    np.maximum.at(longest, pc.list_parent_indices(column).to_numpy(), ends)
    return longest


class AlikeLengths(Sampler):
    """Row numbers, so that each ``size`` of them in turn have like lengths; drawn by epoch.

    All rows in a random order, up to 50 · ``size`` of them at a time sorted by length (at least
    four such parts), cut into groups, and the groups in a random order. So no length comes first,
    as it does where transformers' LengthGroupedSampler leaves the parts sorted; only the group with
    the longest row opens the first epoch: what does not fit in memory fails at once. Rows that
    fill no group are drawn before anything is sorted, and come last.

    Args:
        lengths: (rows,).
        size: rows of an optimizer step, over all micro-batches and processes.
        seed: with the epoch, all that the order depends on: no other draw changes it, every process
            has the same, and a resumed run has that of the run it goes on from.
        epoch: tells the number of the epoch that begins.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.size = np.asarray(lengths), max(1, size)
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        draw = np.random.default_rng((self.seed, epoch))
        order = draw.permutation(len(self.lengths))
        whole = len(order) // self.size * self.size
        part = self.size * max(1, min(len(order) // (4 * self.size), MOST))
        parts = [self._sorted(order[at : min(at + part, whole)]) for at in range(0, whole, part)]
        groups = np.concatenate([*parts, order[:0]]).reshape(-1, self.size)
        groups = groups[draw.permutation(len(groups))]
        if epoch == 0 and len(groups):
            first = self.lengths[groups].max(1).argmax()
            groups[[0, first]] = groups[[first, 0]]
        yield from [*groups.flatten().tolist(), *self._sorted(order[whole:]).tolist()]

    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.lengths[rows], kind="stable")]


class AlikeBatches:
    """Of a Trainer: ``group_by_length`` takes `AlikeLengths`, and leaves evaluated rows in order.

    Trainer 5.24 would sort those as well, and metrics that compare rows with the data need order.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        args = self.args
        rows = self.train_dataset if train_dataset is None else train_dataset
        alike = args.train_sampling_strategy == "group_by_length" and hasattr(rows, "__len__")
        lengths = row_lengths(rows) if alike else None
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        size = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return AlikeLengths(lengths, size, seed, lambda: int(self.state.epoch or 0))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        ordered = self.args.world_size <= 1 and hasattr(eval_dataset, "__len__")
        return SequentialSampler(eval_dataset) if ordered else None
