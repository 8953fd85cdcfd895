"""Labels of which an example has any number: read from lists, from texts, or from 0/1 columns."""

from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List

from hf_sft.errors import DataError, listing, nearest
from hf_sft.tasks.labels import first_few, ordered

FORMS = "lists, texts with task.label_separator, or several columns of 0 and 1"
Lists = list[list[str]]  # the labels of every row


def encode_label_lists(
    data: DatasetDict, columns: tuple[str, ...], separator: str | None, keep: list | None
) -> DatasetDict:
    """The same rows with lists of ClassLabel in the first of ``columns``, in place of all of them.

    One column: lists of names, or texts that ``separator`` divides; nothing there is no label. Its
    names are taken from train, in the order of a ClassLabel, else numbers as numbers and texts as
    texts. Several columns: 0 or 1 each, a label each, in the order given. ``keep`` leaves only the
    named labels; rows stay.

    Raises:
        DataError: a value that is none of these (with its row), fewer than two labels, a label in
            another split that train does not have, or a name in ``keep`` that does not occur.
    """
    found, problems = {}, []
    for split, rows in data.items():
        read = _flags(rows, columns) if len(columns) > 1 else _lists(rows, columns[0], separator)
        found[split], bad = read
        problems += first_few(f"data.{split}", bad)
    if problems:
        raise DataError("\n".join(problems))
    if len(columns) > 1:
        names = list(columns)
    else:
        feature = getattr(data["train"].features[columns[0]], "feature", None)
        names = ordered(feature, {name for row in found["train"] for name in row})
    if problems := _name_problems(found, names, keep, columns):
        raise DataError("\n".join(problems))
    names = [name for name in names if keep is None or name in map(str, keep)]
    return DatasetDict({s: _replace(rows, columns, found[s], names) for s, rows in data.items()})


def _flags(rows: Dataset, columns: tuple[str, ...]) -> tuple[Lists, list[str]]:
    """(labels, problems) of columns of 0 and 1."""
    labels: Lists = [[] for _ in range(len(rows))]
    problems = []
    for column in columns:
        for number, value in enumerate(rows[column]):
            if value not in (0, 1):  # True and 1.0 are 1
                problems.append(
                    f"row {number + 1}: {column!r} is {value!r}, neither 0 nor 1. Correct it, or "
                    "leave the column out of task.label."
                )
            elif value:
                labels[number].append(column)
    return labels, problems


def _lists(rows: Dataset, column: str, separator: str | None) -> tuple[Lists, list[str]]:
    """(labels, problems) of a column of lists, or of texts with a separator."""
    classes = getattr(rows.features[column], "feature", None)
    labels, problems = [], []
    for number, value in enumerate(rows[column], 1):
        read, problem = _row(value, classes, separator)
        labels.append(read)
        if problem:
            problems.append(f"row {number}: {column!r} is {value!r}{problem}")
    return labels, problems


def _row(value: Any, classes: Any, separator: str | None) -> tuple[list[str], str | None]:
    """(labels, what is wrong) of one value."""
    if value is None:
        return [], None
    if isinstance(value, str):
        if separator is None:
            return [], ", one text. Set task.label_separator to what stands between its labels."
        value = [part.strip() for part in value.split(separator) if part.strip()]
    if not isinstance(value, list):
        return [], f", no list of labels. Give {FORMS}."
    if isinstance(classes, ClassLabel) and None not in value:
        return list(dict.fromkeys(classes.int2str(value))), None
    if bad := [one for one in value if not isinstance(one, str | int) or not str(one).strip()]:
        return [], f", in which {bad[0]!r} is no label. Correct or remove it."
    return list(dict.fromkeys(str(one).strip() for one in value)), None


def _name_problems(
    found: dict[str, Lists], names: list[str], keep: list | None, columns: tuple[str, ...]
) -> list[str]:
    wanted = names if keep is None else [str(name) for name in keep]
    problems = [
        f"data.keep_labels names {name!r}, but train has: {listing(names)}.{nearest(name, names)}"
        for name in wanted
        if name not in names
    ]
    if len(names) < 2:
        problems.append(
            f"data.train: {columns[0]!r} has {len(names)} labels ({listing(names) or 'none'}); two "
            "are needed. For yes or no, take task.problem: single-label."
        )
    for split, rows in found.items():
        if unknown := sorted({name for row in rows for name in row} - set(names)):
            problems.append(
                f"data.{split}: {columns[0]!r} has labels that train does not: {listing(unknown)}. "
                f"Train has: {listing(names)}.{nearest(unknown[0], names)}"
            )
    return problems


def _replace(rows: Dataset, columns: tuple[str, ...], labels: Lists, names: list[str]) -> Dataset:
    number = {name: index for index, name in enumerate(names)}
    codes = [[number[name] for name in row if name in number] for row in labels]
    order = [name for name in rows.column_names if name not in columns[1:]]
    rows = rows.remove_columns(list(columns))
    rows = rows.add_column(columns[0], codes, feature=List(ClassLabel(names=names)))
    return rows.select_columns(order)
