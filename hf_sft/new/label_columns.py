"""Which column holds the label, and whether it is a class, several labels or a number."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from datasets import ClassLabel, Dataset

from hf_sft.new.column_roles import dtype, inner, is_text, named, unseen

LABELS = (
    "label", "labels", "class", "category", "intent", "target", "sentiment", "topic",
    "coarse_label", "fine_label", "label_text", "label_name", "tag", "tags", "emotion",
    "similarity_score", "similarity", "score", "genre", "language", "y", "rating", "stars",
)  # fmt: skip
SEPARATORS = (";", "|", ",")
SAMPLE = 1000  # rows that a guess looks at
GAPS = 0.02  # share of rows without a value that labels may well have


def sample(rows: Dataset) -> Dataset:
    """The first rows, which a guess looks at."""
    return rows.select(range(min(SAMPLE, len(rows))))


def label_of(rows: Dataset, taken: Iterable[str]) -> str:
    """The likeliest of `labels_among`.

    Raises:
        DataError: no column looks like labels.
    """
    if not (found := labels_among(rows, taken)):
        raise unseen("labels", ["task.label"], rows)
    return found[0]


def labels_among(rows: Dataset, taken: Iterable[str]) -> list[str]:
    """What could be labels, the likeliest first: by name, then ClassLabels, then what repeats.

    Of these, words and pairs of numbers come before longer scales, columns with hardly a gap before
    others, and then those whose smallest class is larger.
    """
    found = [column for column in rows.column_names if column not in set(taken)]
    by_name = named(found, LABELS)
    classes = [column for column in found if isinstance(rows.features[column], ClassLabel)]
    part, ranks = sample(rows), {}
    for column in found:
        if not dtype(rows.features[column]).startswith(("string", "large_string", "int", "bool")):
            continue
        counts = Counter(value for value in part[column] if value is not None)
        if 2 <= len(counts) <= len(part) / 2:
            scale = len(counts) > 2 and not is_text(rows.features[column])
            gaps = 1 - counts.total() / len(part) > GAPS
            ranks[column] = (scale, gaps, -min(counts.values()) / counts.total())
    repeating = sorted(ranks, key=ranks.__getitem__)
    return [*dict.fromkeys([*([by_name] if by_name else []), *classes, *repeating])]


def yes_and_no(rows: Dataset, taken: Iterable[str]) -> list[str]:
    """Two or more columns of 0 and 1, a label each; none where a column is called a label."""
    found = [column for column in rows.column_names if column not in set(taken)]
    if named(found, LABELS) is not None:
        return []
    part = sample(rows)
    binary = [
        column
        for column in found
        if dtype(rows.features[column]).startswith(("int", "bool"))
        and {*part[column]} - {None} <= {0, 1}
    ]
    return binary if len(binary) > 1 else []


def separator_of(rows: Dataset, label: str) -> str | None:
    """What divides the labels of one text, as in ``a;b``; None where each is one.

    The parts must repeat more than the wholes do: that is what several labels are for.
    """
    if not is_text(rows.features[label]):
        return None
    values = [value for value in sample(rows)[label] if value]
    for sign in SEPARATORS:
        wholes = {*values}
        parts = {part.strip() for value in values for part in value.split(sign)}
        several = sum(sign in value for value in values)
        if several > len(values) / 20 and len(parts) < len(wholes) and "" not in parts:
            return sign
    return None


def problem_of(rows: Dataset, label: str | list[str]) -> dict[str, Any]:
    """``problem`` and what belongs to it: lists, columns or divided texts; a number; or nothing."""
    if not isinstance(label, str) or inner(rows.features[label]) is not None:
        return {"problem": "multi-label"}
    if sign := separator_of(rows, label):
        return {"problem": "multi-label", "label_separator": sign}
    if dtype(rows.features[label]).startswith(("float", "double")):
        values = [value for value in sample(rows)[label] if value is not None]
        if any(not value.is_integer() for value in values):
            return {"problem": "regression"}
    return {}
