"""Metrics that count on the data's order: what was evaluated must be what is next in line."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState

from hf_sft.errors import DataError

OTHER_ORDER = (
    "The rows came in another order than they have in the data, or from other data. Take "
    "training.train_sampling_strategy: group_by_length out."
)


def refuse_other_inputs(
    batch: Mapping[str, Any] | None, expected: Sequence[Sequence[int]], padding: int | None
) -> None:
    """This process's part of a batch must have the ids of the expected rows, padding apart.

    Args:
        batch: ``inputs`` of an evaluated batch (``include_for_metrics``), which Trainer 5.24 does
            not gather: of process r, the r-th part of what was evaluated. None tells nothing.
        expected: ids of the rows of all processes.

    Raises:
        DataError: they are others.
    """
    if batch is None:
        return
    given = batch["input_ids"].tolist()
    begin = PartialState().process_index * len(given)
    wanted = expected[begin : begin + len(given)]
    found = given[: len(wanted)]  # what a last batch repeats so that all processes have as many
    if [_known(ids, padding) for ids in found] != [_known(ids, padding) for ids in wanted]:
        raise DataError(OTHER_ORDER)


def _known(ids: Sequence[int], padding: int | None) -> list[int]:
    return [token for token in ids if token != padding]
