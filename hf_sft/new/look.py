"""All checks of a data set, given which of its columns a task reads."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Image

from hf_sft.errors import DataError
from hf_sft.images import ENDINGS
from hf_sft.loaders.crops import SOURCE
from hf_sft.new.column_roles import Roles, inner
from hf_sft.new.findings import (
    Finding,
    class_findings,
    empty_texts,
    long_texts,
    look_alikes,
    missing_labels,
    tiny_classes,
)
from hf_sft.new.image_look import image_findings, mask_classes, object_classes, thing_findings
from hf_sft.new.repeats import Inputs, duplicates, inputs_of, leakage
from hf_sft.tasks.number import number_of
from hf_sft.tasks.number_scale import far_from_one
from hf_sft.tasks.tag_schemes import detect, spans

OTHER = {  # how another answer to the same input is called
    "class": "another label",
    "classes": "other labels",
    "tags": "other tags",
    "objects": "other objects",
    "masks": "another mask",
    "none": "another answer",
}
BETWEEN = " | "  # the columns of one input

Labels = dict[str, list[str | None]]


def look(data: DatasetDict, roles: Roles, labels: Labels, limit: int | None) -> list[Finding]:
    """What looks wrong: first what is between splits, then in each, then of the classes.

    Args:
        data: splits as they were read.
        roles: its columns.
        labels: ``labels_of`` it.
        limit: tokens that the model reads of a text; None where it reads all of it.
    """
    inputs = {split: _inputs(rows, roles) for split, rows in data.items()}
    other = OTHER[roles.form]
    found = []
    for split, before in (("test", "train"), ("validation", "train"), ("test", "validation")):
        if split in inputs and before in inputs:
            found += leakage(split, inputs[split], before, inputs[before], other)
    for split, rows in data.items():
        found += duplicates(split, inputs[split], other)
        if roles.kind == "image":
            found += image_findings(split, rows, roles)
        else:
            found += _of_texts(split, rows, roles, limit)
        if roles.per_row:
            found += missing_labels(split, roles.answer, labels[split])
    return found + _of_classes(labels, roles) + _of_numbers(data["train"], roles)


def _of_texts(split: str, rows: Dataset, roles: Roles, limit: int | None) -> list[Finding]:
    texts = list(contents(rows, roles))
    if roles.kind == "tokens":
        empty = empty_texts(split, roles.inputs[0], texts)
    else:
        empty = [line for c in roles.inputs for line in empty_texts(split, c, rows[c])]
    return empty + (long_texts(split, texts, limit) if limit else [])


def _of_classes(labels: Labels, roles: Roles) -> list[Finding]:
    if roles.per_row:
        return class_findings(labels)
    if roles.form == "none":
        return []
    counts = {split: Counter(filter(None, names)) for split, names in labels.items()}
    if roles.form in ("objects", "masks"):
        return thing_findings(counts, "object" if roles.form == "objects" else "mask")
    return [*look_alikes(counts), *tiny_classes(counts["train"])]


def _of_numbers(train: Dataset, roles: Roles) -> list[Finding]:
    """Labels whose scale is hard to learn."""
    if roles.keys.get("problem") != "regression" or roles.answer is None:
        return []
    numbers = [n for value in train[roles.answer] if (n := number_of(value)) is not None]
    told = far_from_one(roles.answer, numbers)
    return [Finding("far numbers", f"train: {told}", len(numbers))] if told else []


def _inputs(rows: Dataset, roles: Roles) -> Inputs:
    known = roles.answer is not None and roles.form != "masks"
    answers = (_answer(value) for value in rows[roles.answer]) if known else None
    names = _image_names(rows, roles) if roles.kind == "image" else ()
    return inputs_of(contents(rows, roles), answers, names)


def _answer(value: Any) -> str:
    """Equal answers as equal words; ``a`` and ``A`` are two labels."""
    return value.strip() if isinstance(value, str) else str(value)


def contents(rows: Dataset, roles: Roles) -> Iterator[str | bytes | None]:
    """What each row asks: its texts as one, its tokens as a text, or the bytes of its image."""
    if roles.kind == "image":
        for image in _undecoded(rows, roles):
            yield _bytes(image)
    elif roles.kind == "tokens":
        for tokens in rows[roles.inputs[0]]:
            yield " ".join(str(token) for token in tokens or ())
    else:
        columns = [rows[column] for column in roles.inputs]
        for texts in zip(*columns, strict=True):
            yield BETWEEN.join("" if text is None else str(text) for text in texts).strip(BETWEEN)


def _undecoded(rows: Dataset, roles: Roles) -> Any:
    column = roles.inputs[0]
    if not isinstance(rows.features[column], Image):  # paths in a table
        return ({"path": value, "bytes": None} for value in rows[column])
    return rows.cast_column(column, Image(decode=False))[column]


def _bytes(image: dict[str, Any] | None) -> bytes | None:
    if image is None:
        return None
    if image["bytes"] is not None:
        return image["bytes"]
    path = Path(image["path"] or "")
    named = path.suffix.lower() in ENDINGS  # a table may name any file
    return path.read_bytes() if named and path.is_file() else None


def _image_names(rows: Dataset, roles: Roles) -> list[str]:
    """The last two parts of every path, class and file; of a crop what it was cut from."""
    if SOURCE in rows.column_names:
        return rows[SOURCE]
    paths = [image and image["path"] for image in _undecoded(rows, roles)]
    return ["/".join(Path(path).parts[-2:]) if path else "an image" for path in paths]


def labels_of(rows: Dataset, roles: Roles) -> list[str | None]:
    """The class of every row, or all that rows have, of entities one for each; None: missing."""
    if roles.form == "none":
        return []
    if roles.form == "objects":
        return object_classes(rows, roles)
    if roles.form == "masks":
        return mask_classes(rows, roles)
    feature = rows.features[roles.answer]
    if roles.per_row:
        return [label_name(feature, value) for value in rows[roles.answer]]
    if sign := roles.keys.get("label_separator"):
        return [part.strip() for text in rows[roles.answer] for part in (text or "").split(sign)]
    part = inner(feature)
    found = [[label_name(part, value) for value in row or ()] for row in rows[roles.answer]]
    return _entities(found) if roles.form == "tags" else [name for row in found for name in row]


def _entities(sentences: list[list[str | None]]) -> list[str | None]:
    """The type of every entity, however tags spell it; of tags that spell none, all of them."""
    names = [name for row in sentences for name in row]
    try:
        scheme = detect({name for name in names if name})
    except DataError:  # told as what the run refuses
        scheme = "none"
    if scheme == "none":
        return names
    return [kind for row in sentences for kind, *_ in spans([n or "O" for n in row], scheme)]


def label_name(feature: Any, value: Any) -> str | None:
    """A label as a word; None for what is no class: nothing, a blank, a negative number."""
    if value is None or isinstance(value, list | dict):
        return None
    if isinstance(feature, ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(value, float):
        return None if math.isnan(value) else f"{value:g}"
    if isinstance(value, int) and value < 0:
        return None
    return str(value).strip() or None
