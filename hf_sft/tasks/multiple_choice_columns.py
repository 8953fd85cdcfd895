"""Endings in several columns or in one of lists; the right one as number, letter or text."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from hf_sft.errors import DataError
from hf_sft.tasks.labels import first_few

log = logging.getLogger(__name__)

WHOLE = re.compile(r"\d{1,3}")


def listed(name: str, number: int) -> str:
    """What the column is called that holds so many-th texts of a column of lists."""
    return f"{name} {number}"


def columns_of(endings: list[str] | str, found: Sequence[str]) -> list[str]:
    """The columns of the endings among those that rows have after `spread`."""
    if isinstance(endings, list):
        return endings
    return [name for i in range(len(found)) if (name := listed(endings, i)) in found]


def flat(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """Rows with ``choices.text`` as a column of its own, where one of the columns is called so."""
    outer = {name.partition(".")[0] for name in columns if "." in name}
    nested = [name for name in outer if isinstance(rows.features.get(name), dict)]
    return rows.flatten() if nested else rows


def spread(rows: Dataset, endings: list[str] | str, place: str) -> Dataset:
    """Rows whose column of lists has become as many columns as a list has texts.

    Raises:
        DataError: the column holds no lists, or lists of unequal length.
    """
    if isinstance(endings, list) or endings not in rows.column_names:
        return rows
    if not isinstance(rows.features[endings], List):
        raise DataError(
            f"{place}: task.endings names one column, {endings!r}, and it holds no lists. Name a "
            "column of lists, or the columns of the endings."
        )
    lists = [[] if given is None else given for given in rows[endings]]
    count = max(2, len(lists[0])) if lists else 2
    odd = [
        f"row {number}: {endings!r} has {len(given)} texts, the first row {len(lists[0])}. A model "
        "chooses among as many in every row; remove the row, or give it as many."
        for number, given in enumerate(lists, 1)
        if len(given) != count
    ]
    if odd:
        raise DataError("\n".join(first_few(place, odd)))
    rows = rows.remove_columns(endings)
    kind = Value("string") if all(isinstance(t, str) for g in lists for t in g) else None
    for i in range(count):
        rows = rows.add_column(listed(endings, i), [given[i] for given in lists], feature=kind)
    return rows


def numbered(data: DatasetDict, label: str, endings: list[str]) -> DatasetDict:
    """The right ending of every row as its number from 0, where it can be told.

    A letter (A, b, …) is a place; a number counts from 0, or from 1 where just the numbers from 1
    to that of the endings occur; another text is the ending that reads so.
    """
    plain = DatasetDict({split: _plain(rows, label) for split, rows in data.items()})
    numbers = [n for rows in plain.values() for v in rows[label] if (n := _number(v)) is not None]
    first = int(set(numbers) == set(range(1, len(endings) + 1)))
    if first:
        log.warning("task.label: the numbers in %r count from 1; read so.", label)
    return DatasetDict(
        {split: _with_numbers(rows, label, endings, first) for split, rows in plain.items()}
    )


def _plain(rows: Dataset, label: str) -> Dataset:
    """A ClassLabel by its names where they say more than numbers: letters; else as a number."""
    feature = rows.features[label]
    if not isinstance(feature, ClassLabel):
        return rows
    letters = all(len(name) == 1 and name.isalpha() for name in feature.names)
    if not letters:
        return rows.cast_column(label, Value("int64"))
    names = [feature.names[v] if v is not None and v >= 0 else None for v in rows[label]]
    return rows.remove_columns(label).add_column(label, names)


def _number(value: Any) -> int | None:
    if isinstance(value, str) and WHOLE.fullmatch(value.strip()):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with_numbers(rows: Dataset, label: str, endings: list[str], first: int) -> Dataset:
    texts = zip(*(rows[name] for name in endings), strict=True)
    found = [_place(v, given, first) for v, given in zip(rows[label], texts, strict=True)]
    if found == rows[label][:]:
        return rows
    if any(not isinstance(value, int) for value in found):  # told by the check that follows
        return rows
    order = rows.column_names
    rows = rows.remove_columns(label).add_column(label, found, feature=Value("int64"))
    return rows.select_columns(order)


def _place(value: Any, texts: Sequence[Any], first: int) -> Any:
    if (number := _number(value)) is not None:
        return number - first
    if not isinstance(value, str):
        return value
    word = value.strip()
    if len(word) == 1 and word.isascii() and word.isalpha() and texts.count(value) == 0:
        place = ord(word.upper()) - ord("A")
        return place if place < len(texts) else value
    return texts.index(value) if texts.count(value) == 1 else value
