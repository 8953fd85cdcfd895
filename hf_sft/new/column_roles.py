"""What the columns of a data set are for, and how names and types tell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Features, Value

from hf_sft.errors import DataError, listing


@dataclass(frozen=True)
class Roles:
    """What the task reads, and how the checks see it.

    Attributes:
        keys: what goes into the ``task`` block.
        inputs: columns a row is recognised by.
        answer: the column with what is to be learnt; None where there is none.
        form: of the answer: a class per row, several of them, a tag per word, objects in boxes, a
            mask of classes, or no classes.
        kind: what the inputs are.
        others: columns that could be the answer as well, where it was guessed.
    """

    keys: dict[str, Any]
    inputs: list[str]
    answer: str | None = None
    form: Literal["class", "classes", "tags", "objects", "masks", "none"] = "none"
    kind: Literal["text", "tokens", "image"] = "text"
    others: tuple[str, ...] = ()

    @property
    def per_row(self) -> bool:
        """One class per row."""
        return self.form == "class"


def named(columns: Iterable[str], names: Iterable[str]) -> str | None:
    """The column with the first of the names that occurs, upper or lower case."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)


def dtype(feature: Any) -> str:
    """Of a plain column; nothing for lists, images, classes, …"""
    return feature.dtype if isinstance(feature, Value) else ""


def is_text(feature: Any) -> bool:
    """Whether a column holds texts."""
    return dtype(feature) in ("string", "large_string")


def inner(feature: Any) -> Any:
    """What a column of lists holds; None for one without lists."""
    return getattr(feature, "feature", None)


def unseen(what: str, keys: Iterable[str], rows: Dataset) -> DataError:
    """No column looks like what is needed: what there is, and how to say which it is."""
    columns = listing(f"{name} ({kind_of(rows.features, name)})" for name in rows.column_names)
    how = " ".join(f"{key}=COLUMN" for key in keys)
    return DataError(
        f"{listing(keys)}: no column of train looks like {what}; it has: {columns}. Say which one "
        f"to read: {how}."
    )


def kind_of(features: Features, column: str) -> str:
    """The type of a column in a word or two."""
    feature = features[column]
    if isinstance(feature, ClassLabel):
        return "1 class" if len(feature.names) == 1 else f"{len(feature.names)} classes"
    if isinstance(feature, Value):
        return {"string": "text", "large_string": "text"}.get(feature.dtype, feature.dtype)
    if isinstance(feature, dict):
        return f"{{{listing(feature, 4)}}}"
    if (part := inner(feature)) is not None:
        return f"list of {kind_of(Features({column: part}), column)}"
    return type(feature).__name__.lower()
