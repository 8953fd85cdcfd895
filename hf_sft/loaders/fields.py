"""Fields: ``objects.category`` is what lies in a column, ``objects.category.count`` how many."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, LargeList, List, Value

COUNT = "count"  # of a list: its length


def with_fields(rows: Dataset, names: Iterable[str]) -> Dataset:
    """The rows with a column for every one of ``names`` that is a field of a column.

    Field by field, parted by dots: of a struct, or of every struct in a list; last, the count of a
    list's entries. Any other name is passed over.
    """
    for name in names:
        column, *path = name.split(".")
        if not path or name in rows.column_names or column not in rows.column_names:
            continue
        if (kind := _kind(rows.features[column], path)) is not None:
            values = [_value(value, path) for value in rows[column]]
            rows = rows.add_column(name, values, feature=kind)
    return rows


def _kind(kind: Any, path: list[str]) -> Any:
    """The type of a field; None where there is no such field."""
    if not path:
        return kind
    first, *rest = path
    if isinstance(kind, dict):
        return _kind(kind[first], rest) if first in kind else None
    if not isinstance(kind, List | LargeList):
        return None
    if first == COUNT:
        return None if rest else Value("int64")
    inner = _kind(kind.feature, path)
    return None if inner is None else List(inner)


def _value(value: Any, path: list[str]) -> Any:
    if value is None or not path:
        return value
    first, *rest = path
    if isinstance(value, dict):
        return _value(value[first], rest)
    return len(value) if first == COUNT else [_value(one, path) for one in value]
