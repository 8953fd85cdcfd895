"""The checks of images with objects or masks, and of images as such."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image

from hf_sft.errors import listing
from hf_sft.images import BrokenImage, each, size_of
from hf_sft.new.box_findings import box_findings
from hf_sft.new.column_roles import Roles
from hf_sft.new.findings import (
    FEW,
    MOST_ROWS,
    UNBALANCED,
    Finding,
    absent_classes,
    counted,
    look_alikes,
)

SMALL = 32  # pixels; models of natural images see nothing in a smaller side
STRETCHED = 4  # times as long as wide
BOX_KEYS = {"image": "image", "objects": "objects", "box": "bbox", "category": "category"}


def image_findings(split: str, rows: Dataset, roles: Roles) -> list[Finding]:
    """Of one split: boxes, where there are any; images that are small or of odd shapes."""
    found = _shapes(split, rows, roles.inputs[0])
    if roles.form == "objects":
        found += box_findings(split, rows, BOX_KEYS | _columns_of(roles))
    return found


def _columns_of(roles: Roles) -> dict[str, str]:
    return {key: value for key, value in roles.keys.items() if key in BOX_KEYS}


def object_classes(rows: Dataset, roles: Roles) -> list[str | None]:
    """The class of every object of every image, in order."""
    keys = BOX_KEYS | _columns_of(roles)
    feature = rows.features[keys["objects"]]
    feature = getattr(feature, "feature", feature)
    kind = feature[keys["category"]]
    kind = getattr(kind, "feature", kind)
    names = []
    for row in rows.select_columns([keys["objects"]]):
        objects = row[keys["objects"]] or {}
        values = (
            [one[keys["category"]] for one in objects]
            if isinstance(objects, list)
            else objects.get(keys["category"]) or []
        )
        names += [_word(value, kind) for value in values]
    return names


def _word(value: Any, kind: Any) -> str | None:
    if value is None or (isinstance(value, int) and value < 0):
        return None
    return kind.int2str(value) if isinstance(kind, ClassLabel) else str(value).strip() or None


def mask_classes(rows: Dataset, roles: Roles) -> list[str | None]:
    """The classes in every mask, each once for an image; numbers where nothing names them."""
    feature = getattr(rows.features.get("classes"), "feature", None)
    names = feature.names if isinstance(feature, ClassLabel) else []
    column = rows.select_columns([roles.answer]).cast_column(roles.answer, Image())
    found = []
    for row in column:
        values = np.unique(np.asarray(row[roles.answer])).astype(int).tolist()
        found += [names[v] if v < len(names) else str(v) for v in values if v != 255]
    return found


def thing_findings(counts: dict[str, Counter], noun: str) -> list[Finding]:
    """Of the classes of objects, or of masks: tiny, unbalanced, look-alike, absent, strange ones.

    ``counts``: split -> class -> how many; ``noun``: of what.
    """
    train = counts["train"]
    found = look_alikes(counts)
    if tiny := sorted((count, name) for name, count in train.items() if count < FEW):
        names = listing(f"{name!r} ({count})" for count, name in tiny)
        text = f"train: {counted(len(tiny), 'class')} with fewer than {FEW} {noun}s: {names}."
        found.append(Finding("tiny classes", text, len(tiny)))
    ranked = train.most_common()
    if len(ranked) > 1 and ranked[0][1] >= UNBALANCED * ranked[-1][1]:
        (most, large), (least, small) = ranked[0], ranked[-1]
        text = (
            f"train: {most!r} has {counted(large, noun)}, {least!r} {small}. Read the scores of "
            "each class, not their mean alone."
        )
        found.append(Finding("imbalance", text, large))
    for split, here in counts.items():
        if strange := sorted(set(here) - set(train)):
            text = f"{split}: {noun}s of classes that train lacks: {listing(strange)}."
            found.append(Finding("strange classes", text, sum(here[name] for name in strange)))
    return [*found, *absent_classes(counts, noun)]


def _shapes(split: str, rows: Dataset, column: str) -> list[Finding]:
    """Images of few pixels, or far from square."""
    small, long = [], []
    for number, size in enumerate(each(_size, _undecoded(rows, column)), 1):
        if size is None:
            continue  # the task refuses it by name
        if min(size) < SMALL:
            small.append((number, size))
        if max(size) > STRETCHED * min(size):
            long.append((number, size))
    words = {
        "small images": (small, f"with a side under {SMALL} pixels; they are blown up."),
        "long images": (long, f"more than {STRETCHED} times as long as wide; a square of them "
                        "shows a part, or squeezes them."),
    }  # fmt: skip
    return [
        Finding(kind, f"{split}: {counted(len(found), 'image')} {text}", len(found),
                tuple(number for number, _ in found[:MOST_ROWS]),
                f"{split} row {found[0][0]} has {found[0][1][0]} × {found[0][1][1]} pixels")
        for kind, (found, text) in words.items() if found
    ]  # fmt: skip


def _size(image: Any) -> tuple[int, int] | None:
    try:
        return None if image is None else size_of(image)
    except BrokenImage:
        return None


def _undecoded(rows: Dataset, column: str) -> Iterator[Any]:
    if not isinstance(rows.features[column], Image):  # paths in a table
        return iter(rows[column])
    return (
        row[column]
        for row in rows.select_columns([column]).cast_column(column, Image(decode=False))
    )
