"""Columns of Python values as Arrow's: one type each, told by row where it is not."""

import bisect
from typing import Any

import pyarrow as pa
from datasets import Dataset

from hf_sft.errors import DataError, listing

DEEPEST = 16  # levels of lists and objects in a value; turns of a chat are at 2
WRONG = (pa.ArrowException, OverflowError)


def array(values: list, name: str, where: str) -> pa.Array:
    """The column, of the type that all its values have.

    Raises:
        DataError: they have several, one is a number without end, or nests too deep.
    """
    try:
        found = pa.array(values)
    except WRONG as error:
        first = bisect.bisect_left(range(1, len(values)), True, key=lambda n: _fails(values[:n]))
        raise DataError(
            f"{where} row {first + 1}: column {name!r} mixes types ({error}); here it has "
            f"{values[first]!r:.60}. Give all its values one type."
        ) from error
    if (levels := _levels(found.type)) > DEEPEST:
        raise DataError(
            f"{where}: column {name!r} nests {levels} levels deep; at most {DEEPEST} are read. "
            "Write its values flatter, or leave the column out."
        )
    return found


def dataset(table: Any, where: str) -> Dataset:
    """The table, of Arrow's or of datasets', as rows.

    Raises:
        DataError: datasets cannot keep the names of its columns.
    """
    try:
        return Dataset(table)
    except ValueError as error:  # what datasets keeps of a name ends at a NUL
        names = listing(map(repr, table.column_names))
        raise DataError(
            f"{where}: the names of its columns ({names}), or of the fields in them, cannot be "
            "kept; is there a NUL in one? Name them with letters."
        ) from error


def _fails(values: list) -> bool:
    try:
        pa.array(values)
    except WRONG:
        return True
    return False


def _levels(kind: Any) -> int:
    """How deep a type nests; 0 for a number or a text."""
    level, inside = 0, [kind]
    while inside := [t.field(i).type for t in inside for i in range(t.num_fields)]:
        level += 1
    return level
