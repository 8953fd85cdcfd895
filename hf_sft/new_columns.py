"""Which columns of a data set a task reads, by their names and types."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, Value

from hf_sft.errors import DataError, listing

LABELS = (
    "label", "labels", "class", "category", "intent", "target", "sentiment", "topic",
    "coarse_label", "fine_label", "label_text", "label_name", "tag",
    "emotion", "genre", "language", "y",
)  # fmt: skip
TEXTS = (
    "text", "sentence", "content", "review", "comment", "message", "utterance", "query", "question",
    "tweet", "document", "body", "article", "description", "title",
)  # fmt: skip
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("text1", "text2"), ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
IMAGES = ("image", "img", "picture", "photo", "file", "path", "file_name", "filename")
SAMPLE = 1000  # rows that a guess looks at


@dataclass(frozen=True)
class Roles:
    """What the task reads, and how the checks see it.

    Attributes:
        keys: what goes into the ``task`` block.
        inputs: columns a row is recognised by.
        answer: the column with what is to be learnt; None where there is none.
        classes: whether the answer is one class per row, or one per token.
        kind: what the inputs are: text, tokens or image.
    """

    keys: dict[str, Any]
    inputs: list[str]
    answer: str | None
    classes: bool = True
    kind: str = "text"

    @property
    def per_row(self) -> bool:
        """One class per row."""
        return self.classes and self.kind != "tokens"


def roles(task: str, rows: Dataset, given: dict[str, Any]) -> Roles:
    """The columns of ``rows`` (train) that ``task`` reads; those in ``given`` are settled.

    Raises:
        DataError: no column looks like what the task needs; it names them and says how to.
    """
    return GUESSES[task](rows, given)


def _text_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    found, texts = rows.column_names, given.get("text") or []
    label = given.get("label") or _label(rows, taken=texts)
    strings = [c for c in found if _is_text(rows.features[c]) and c != label]
    lower = {column.lower(): column for column in strings}
    if not texts:
        pairs = [[lower[a], lower[b]] for a, b in PAIRS if a in lower and b in lower]
        texts = pairs[0] if pairs else [_text(rows, strings)]
    return Roles({"text": texts, "label": label}, texts, label)


def _image_classification(rows: Dataset, given: dict[str, Any]) -> Roles:
    images = [c for c, kind in rows.features.items() if isinstance(kind, Image)]
    named = _named(rows.column_names, IMAGES)
    if (image := given.get("image") or next(iter(images), named)) is None:
        raise _unseen("images", "task.image", rows)
    label = given.get("label") or _label(rows, taken=[image])
    return Roles({"image": image, "label": label}, [image], label, kind="image")


def _label(rows: Dataset, taken: list[str]) -> str:
    """By name, else a ClassLabel, else the column with the fewest values that repeat."""
    found = [column for column in rows.column_names if column not in taken]
    if (named := _named(found, LABELS)) is not None:
        return named
    for column in found:
        if isinstance(rows.features[column], ClassLabel):
            return column
    part = rows.select(range(min(SAMPLE, len(rows))))
    values = {
        column: len({*part[column]} - {None})
        for column in found
        if _dtype(rows.features[column]).startswith(("string", "large_string", "int", "bool"))
    }
    few = {column: count for column, count in values.items() if 2 <= count <= len(part) / 2}
    if not few:
        raise _unseen("labels", "task.label", rows)
    return min(few, key=few.__getitem__)


def _text(rows: Dataset, strings: list[str]) -> str:
    """By name, else the longest texts."""
    if (named := _named(strings, TEXTS)) is not None:
        return named
    if not strings:
        raise _unseen("texts", "task.text", rows)
    part = rows.select(range(min(SAMPLE, len(rows))))
    return max(strings, key=lambda column: sum(len(text or "") for text in part[column]))


def _named(columns: Iterable[str], names: tuple[str, ...]) -> str | None:
    """The column with the first of the names that occurs, upper or lower case."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)


def _dtype(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else ""


def _is_text(feature: Any) -> bool:
    return _dtype(feature) in ("string", "large_string")


def _unseen(what: str, key: str, rows: Dataset) -> DataError:
    columns = listing(f"{name} ({kind_of(rows.features, name)})" for name in rows.column_names)
    return DataError(
        f"{key}: no column of train looks like {what}; it has: {columns}. Say which one holds "
        f"them: {key}=COLUMN."
    )


def kind_of(features: Features, column: str) -> str:
    """The type of a column in a word or two."""
    feature = features[column]
    if isinstance(feature, ClassLabel):
        return f"{len(feature.names)} classes"
    if isinstance(feature, Value):
        return {"string": "text", "large_string": "text"}.get(feature.dtype, feature.dtype)
    if isinstance(feature, dict):
        return f"{{{listing(feature, 4)}}}"
    inner = getattr(feature, "feature", None)
    if inner is not None:
        return f"list of {kind_of(Features({column: inner}), column)}"
    return type(feature).__name__.lower()


GUESSES: dict[str, Callable[[Dataset, dict[str, Any]], Roles]] = {
    "text-classification": _text_classification,
    "image-classification": _image_classification,
}
