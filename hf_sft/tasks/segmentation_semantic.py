"""Semantic segmentation: a class for every pixel, from mask pictures or painted outlines."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from torch import Tensor

from hf_sft import images
from hf_sft.errors import DataError, listing
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.segmentation_ignored import ignored_share, refuse_one_class
from hf_sft.tasks.segmentation_masks import (
    IGNORED,
    class_map,
    objects,
    painted,
    read_map,
    written_map,
)
from hf_sft.tasks.segmentation_outlines import checked_outlines
from hf_sft.tasks.segmentation_overlap import ConfusionSummary, StreamingOverlap

log = logging.getLogger(__name__)

CLASSES = "classes"  # column: the classes seen in a row's mask, which also names all of them


@dataclass(frozen=True)
class Semantic:
    """What the task's settings mean where every pixel has one class."""

    metric_names: ClassVar[tuple[str, ...]] = ("mean_iou", "mean_accuracy", "pixel_accuracy")
    selection_metric: ClassVar[str] = "mean_iou"

    image: str
    mask: str
    objects: str
    classes: list[str] | int | None
    ignore_index: int | None
    reduce_labels: bool
    background: str | None

    def columns(self, found: dict[str, Any]) -> dict[str, str]:
        """The column of the masks, or where there is none that of outlined objects."""
        outlined = self.mask not in found and self.objects in found
        return {"task.objects": self.objects} if outlined else {"task.mask": self.mask}

    def check(self, data: DatasetDict) -> DatasetDict:
        """Every mask is looked at: its size, and that its numbers are those of classes.

        Raises:
            DataError: the first few of each kind of problem.
        """
        if self.mask not in data["train"].features:
            return checked_outlines(data, self.image, self.objects, "task.problem: semantic")
        wrong = [
            f"data.{split}: {self.mask!r} holds no pictures but {rows.features[self.mask]}. "
            "Correct task.mask."
            for split, rows in data.items()
            if not isinstance(rows.features[self.mask], Image)
        ]
        if wrong:
            raise DataError("\n".join(wrong))
        names = self._known_names(data["train"])
        looked = {split: self._looked(split, rows, names) for split, rows in data.items()}
        if problems := [line for lines, _ in looked.values() for line in lines]:
            raise DataError("\n".join(problems))
        seen = {split: found for split, (_, found) in looked.items()}
        trained = {number for found in seen["train"] for number in found}
        self._refuse_one_class(data["train"], trained, names)
        if names is None:
            _refuse_nameless(seen)
        return DatasetDict({s: _with_classes(data[s], seen[s], names) for s in data})

    def _refuse_one_class(self, rows: Dataset, trained: set[int], names: list | None) -> None:
        """Tell the classes of which train has no pixel, and refuse it where one is left."""
        rare = [name for number, name in enumerate(names or []) if number not in trained]
        if not rare and len(trained) > 1:
            return
        share = ignored_share(rows, self.mask, self.ignore_index)
        refuse_one_class(trained, names, self.ignore_index, share, int(self.reduce_labels))
        lost = f" {share:.0%} of all pixels are {self.ignore_index}, task.ignore_index, no class."
        if rare:
            log.warning("data.train: no pixel of %s.%s", listing(rare), lost if share else "")

    def _known_names(self, rows: Dataset) -> list[str] | None:
        """The task's classes, the loader's, or None."""
        if isinstance(self.classes, int):
            return [str(number) for number in range(self.classes)]
        named = rows.features.get(CLASSES)
        inner = getattr(named, "feature", None)
        return self.classes or (inner.names if isinstance(inner, ClassLabel) else None)

    def _looked(self, split: str, rows: Dataset, names: list | None) -> tuple[list, list]:
        """Problems of a split's masks, and the classes in each."""
        pair = rows.select_columns([self.image, self.mask])
        for column in (self.image, self.mask):
            pair = pair.cast_column(column, Image(decode=False))
        found = list(images.each(lambda row: self._look(row, names), pair))
        problems = [f"row {i}: {line}" for i, line in enumerate(found, 1) if isinstance(line, str)]
        return first_few(f"data.{split}", problems), found

    def _look(self, row: dict, names: list[str] | None) -> list[int] | str:
        """The classes in a row's mask, or what is wrong with the row."""
        picture, mask = row[self.image], row[self.mask]
        for one in (picture, mask):
            if (problem := images.problem_of(one)) is not None:
                return problem
        name = mask["path"] or "its mask"
        sizes = images.size_of(picture), images.size_of(mask)
        if sizes[0] != sizes[1]:
            return (
                f"'{name}' is of {sizes[1][0]} × {sizes[1][1]} pixels, its image of "
                f"{sizes[0][0]} × {sizes[0][1]}. Make the mask as large as the image."
            )
        try:
            decoded = Image().decode_example(mask)
            classes = class_map(decoded, self.ignore_index, self.reduce_labels)
        except (ValueError, OSError, SyntaxError) as error:
            return f"'{name}' {error}"
        seen = np.unique(classes).tolist()
        unknown = [number for number in seen if names is not None and number >= len(names)]
        if unknown:
            y, x = np.argwhere(classes == unknown[0])[0].tolist()
            return self._unknown(name, unknown[0], x, y, names)
        return [number for number in seen if number != IGNORED]

    def _unknown(self, name: str, number: int, x: int, y: int, names: list[str]) -> str:
        first = int(self.reduce_labels)
        return (
            f"'{name}' has {number + first} at x {x}, y {y}; the classes are {first} to "
            f"{len(names) - 1 + first} ({listing(names, 4)}), and task.ignore_index is "
            f"{self.ignore_index}. Name all classes, or correct the mask or ignore_index."
        )

    def names(self, data: DatasetDict) -> list[str]:
        """The classes in the order of their numbers."""
        features = data["train"].features
        if CLASSES in features and self.mask in features:
            return features[CLASSES].feature.names
        names = features[self.objects]["category"].feature.names
        return [self.background, *names] if self.background is not None else list(names)

    def kept(self, features: Features) -> list[str]:
        """The columns that hold the truth, where it is known."""
        found = [column for column in (self.mask, self.objects) if column in features]
        return found[:1]

    def target(self, row: dict, height: int, width: int) -> Tensor:
        """(height, width) of int64: the class of every pixel, or IGNORED."""
        if self.mask in row:
            found = class_map(row[self.mask], self.ignore_index, self.reduce_labels)
        else:
            shapes = objects(row[self.objects], height, width)
            found = painted(shapes, self.background is not None)
        return torch.from_numpy(found)

    def written(self, target: Tensor) -> list[int]:
        """The target in numbers, for the metrics."""
        return written_map(target.numpy())

    def read(self, written: Tensor) -> Tensor:
        """What `written` wrote."""
        return read_map(written)

    def summarizer(self, processor: Any) -> ConfusionSummary:
        """Counts per image, on the device."""
        return ConfusionSummary(processor)

    def metrics(self, names: list[str]) -> StreamingOverlap:
        """Sums over images."""
        return StreamingOverlap(names)


def _with_classes(rows: Dataset, seen: list[list[int]], names: list[str]) -> Dataset:
    if CLASSES in rows.column_names:
        rows = rows.remove_columns(CLASSES)
    return rows.add_column(CLASSES, seen, feature=List(ClassLabel(names=names)))


def _refuse_nameless(seen: dict[str, list[list[int]]]) -> None:
    found = sorted({number for rows in seen.values() for row in rows for number in row})
    count = found[-1] + 1 if found else 2
    raise DataError(
        f"task.classes: nothing names the classes; the masks hold {listing(found)}. Set "
        f"task.classes to the list of their names in order, or to how many there are: {count}."
    )
