"""Class labels found in the data: their names, their order, and what is wrong with them."""

import math
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_sft.errors import DataError, listing, nearest

AT_ONCE = 10_000  # rows that are read at a time
MOST_ROWS = 5  # problems of one kind that are listed one by one


def encode_labels(data: DatasetDict, column: str, keep: list | None = None) -> DatasetDict:
    """The same rows with ``column`` as ClassLabel; names taken from train, in a stable order.

    A ClassLabel keeps its order; numbers sort as numbers, everything else as text. ``keep`` leaves
    only the rows of the named classes.

    Raises:
        DataError: missing labels (with row numbers), fractions, a single class, classes in another
            split that train does not have, or a name in ``keep`` that does not occur.
    """
    if problems := [line for split in data for line in missing_labels(data[split], column, split)]:
        raise DataError("\n".join(problems))
    values = {split: label_names(rows, column) for split, rows in data.items()}
    if keep is not None:
        data, values = _keep(data, values, [str(name) for name in keep])
    names = ordered(data["train"].features[column], set(values["train"]))
    if problems := _class_problems(values, names, column):
        raise DataError("\n".join(problems))
    number = {name: index for index, name in enumerate(names)}
    encoded = {}
    for split, rows in data.items():
        features = Features({**rows.features, column: ClassLabel(names=names)})
        codes = [number[name] for name in values[split]]
        encoded[split] = _replace(rows, column, codes, features)
    return DatasetDict(encoded)


def missing_labels(rows: Dataset, column: str, split: str) -> list[str]:
    """A line for each of the first rows without a usable label, and a count of the rest.

    Numbers from -1 are told once: -1 may be a class, or stand for an unknown one.
    """
    values = column_values(rows, column)
    if {type(value) for value in values} == {int} and min(values) == -1 and max(values) >= 0:
        return [
            f"data.{split}: {values.count(-1)} of {len(values)} rows have the {column!r} -1, the "
            f"first is row {values.index(-1) + 1}. Where -1 is a class (-1, 0, 1), write names in "
            "its place (negative, neutral, positive); where it says that the class is not known, "
            "remove the rows."
        ]
    return first_few(
        f"data.{split}",
        [
            f"row {number}: {column!r} is {_shown(value)}; every row needs a class. "
            "Remove the row, or give it a label (a name, where -1 stands for a class)."
            for number, value in enumerate(values, 1)
            if _unusable(value)
        ],
    )


def first_few(place: str, problems: list[str]) -> list[str]:
    """The first problems with their place, and a count of the rest."""
    lines = [f"{place} {line}" for line in problems[:MOST_ROWS]]
    rest = len(problems) - MOST_ROWS
    return [*lines, f"{place}: {rest} more rows like these."] if rest > 0 else lines


def label_names(rows: Dataset, column: str) -> list[str]:
    """The label of every row as text."""
    feature, values = rows.features[column], column_values(rows, column)
    if isinstance(feature, ClassLabel):
        return [feature.names[value] for value in values]
    names = {value: _text(value) for value in set(values)}
    return [names[value] for value in values]


def column_values(rows: Dataset, column: str) -> list:
    """The values of all rows, read a part at a time; equal texts are one object."""
    once: dict[str, str] = {}
    alone, starts = rows.select_columns(column), range(0, len(rows), AT_ONCE)
    parts = (alone[start : start + AT_ONCE][column] for start in starts)
    return [once.setdefault(v, v) if isinstance(v, str) else v for part in parts for v in part]


def name_labels(config: Any, names: list[str]) -> None:
    """Write the labels into a model's config, wherever its kind keeps them."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.num_labels = len(names)
    if hasattr(config, "label_names"):  # timm_wrapper writes these in preference to id2label
        config.label_names = names


def _unusable(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value) or not value.is_integer()
    return (
        value is None
        or isinstance(value, (list, dict))
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, int) and value < 0)
    )


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing (NaN)"
    if isinstance(value, int):
        return f"{value!r}, and a negative number means that the class is not known"
    return f"{value!r}, which is no class"


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) else str(value).strip()


def ordered(feature: Any, present: set[str]) -> list[str]:
    """The names that occur: a ClassLabel keeps its order, numbers sort as numbers."""
    if isinstance(feature, ClassLabel):
        return [name for name in feature.names if name in present]
    numeric = all(name.isdecimal() for name in present)
    return sorted(present, key=(lambda name: (int(name), name)) if numeric else None)


def _keep(data: DatasetDict, values: dict[str, list[str]], keep: list[str]):
    """(rows of the classes in ``keep``, their labels)."""
    present = set(values["train"])
    problems = [
        f"data.keep_labels names {name!r}, but train has: {listing(sorted(present))}."
        f"{nearest(name, present)}"
        for name in keep
        if name not in present
    ]
    rows = {s: [i for i, name in enumerate(values[s]) if name in keep] for s in data}
    problems += [
        f"data.{split}: no row is left after data.keep_labels {keep}."
        for split, indices in rows.items()
        if not indices
    ]
    if problems:
        raise DataError("\n".join(problems))
    kept = DatasetDict({split: data[split].select(indices) for split, indices in rows.items()})
    return kept, {split: [values[split][i] for i in indices] for split, indices in rows.items()}


def _class_problems(values: dict[str, list[str]], names: list[str], column: str) -> list[str]:
    problems = []
    if len(names) < 2:
        problems.append(
            f"data.train: {column!r} has the single class {listing(names)}; two are needed."
        )
    for split, found in values.items():
        if unknown := sorted(set(found) - set(names)):
            problems.append(
                f"data.{split}: {column!r} has classes that train does not: {listing(unknown)}. "
                f"Train has: {listing(names)}.{nearest(unknown[0], names)}"
            )
    return problems


def _replace(rows: Dataset, column: str, codes: list[int], features: Features) -> Dataset:
    order = rows.column_names
    rows = rows.remove_columns(column).add_column(column, codes, feature=Value("int64"))
    return rows.select_columns(order).cast_column(column, features[column])
