"""Images with objects in boxes, as every loader of detection data gives them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from hf_sft.errors import DataError
from hf_sft.images import each, size_or_problem

MOST_LINES = 5  # problems of one file that are listed one by one

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Thing:
    """One object.

    Attributes:
        box: x, y, width, height in pixels from the image's upper left corner (COCO).
        category: the name of its class.
        area: square pixels; of the shape where there is one, else of the box.
        crowd: a region with many of them, which is no example of one.
        difficult: VOC's word for what a person can hardly recognise; None where nothing says.
        segmentation: its shape as COCO's json: polygons or run lengths; None without one.
    """

    box: tuple[float, float, float, float]
    category: str
    area: float
    crowd: bool = False
    difficult: bool | None = None
    segmentation: str | None = None


@dataclass(slots=True)
class Annotated:
    """An image file with its objects, of which there may be none.

    Attributes:
        path: the file.
        name: how the data name it: relative to their folder.
        width, height: pixels, from the file's header.
        things: its objects in the data's order.
        id: its number or name in the data, where they give one.
    """

    path: Path
    name: str
    width: int
    height: int
    things: list[Thing]
    id: int | str | None = None


Parts = dict[str, list[Annotated]]


def as_rows(parts: Parts, names: Sequence[str]) -> DatasetDict:
    """Every split as a row per image: ``image`` (undecoded), ``width``, ``height``, ``objects``.

    ``objects`` is a dict of lists: ``bbox``, ``category``, ``area``, ``iscrowd``; beside them
    ``difficult`` and ``segmentation`` where an object has one, and ``image_id`` where images do.
    ``names``: the classes in order, of all splits.
    """
    things = [thing for images in parts.values() for image in images for thing in image.things]
    objects = {
        "bbox": List(List(Value("float32"))),
        "category": List(ClassLabel(names=list(names))),
        "area": List(Value("float32")),
        "iscrowd": List(Value("bool")),
    }
    if any(thing.difficult is not None for thing in things):
        objects["difficult"] = List(Value("bool"))
    if any(thing.segmentation is not None for thing in things):
        objects["segmentation"] = List(Value("string"))
    size = {"width": Value("int64"), "height": Value("int64")}
    features = {"image": Image(), **size, "objects": objects}
    ids = [image.id for images in parts.values() for image in images]
    if ids and None not in ids:
        number = all(isinstance(value, int) for value in ids)
        features["image_id"] = Value("int64" if number else "string")
    number_of = {name: index for index, name in enumerate(names)}
    return DatasetDict(
        {split: _rows(images, Features(features), number_of) for split, images in parts.items()}
    )


def _rows(images: list[Annotated], features: Features, number_of: Mapping[str, int]) -> Dataset:
    columns: dict[str, list[Any]] = {
        "image": [str(image.path) for image in images],
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "objects": [_objects(image.things, features["objects"], number_of) for image in images],
    }
    if "image_id" in features:
        whole = features["image_id"].dtype == "int64"
        columns["image_id"] = [image.id if whole else str(image.id) for image in images]
    return Dataset.from_dict(columns, features=features)


def _objects(things: list[Thing], kinds: Any, number_of: Mapping[str, int]) -> dict[str, list]:
    found = {
        "bbox": [list(thing.box) for thing in things],
        "category": [number_of[thing.category] for thing in things],
        "area": [thing.area for thing in things],
        "iscrowd": [thing.crowd for thing in things],
    }
    if "difficult" in kinds:
        found["difficult"] = [bool(thing.difficult) for thing in things]
    if "segmentation" in kinds:
        found["segmentation"] = [thing.segmentation or "[]" for thing in things]
    return found


def sizes(paths: Sequence[Path]) -> tuple[list[tuple[int, int]], list[str]]:
    """(width, height) of every file, from the headers in parallel; and what is wrong with some."""
    found = list(each(size_or_problem, paths))
    problems = [line for line in found if isinstance(line, str)]
    return [(0, 0) if isinstance(size, str) else size for size in found], problems


def inside(folder: Path, name: Any) -> Path | None:
    """The file that data name, in ``folder``; None for a name that leads out of it as it is
    written (links that the user has set are followed)."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        return None
    parts = PurePosixPath(name.replace("\\", "/"))
    away = parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts
    return None if away else folder / parts


def few(place: str, problems: Iterable[str]) -> list[str]:
    """The first problems, each after ``place``, and how many more there are."""
    problems = list(problems)
    lines = [f"{place} {line}" for line in problems[:MOST_LINES]]
    rest = len(problems) - MOST_LINES
    return [*lines, f"{place} {rest} more problems like these."] if rest > 0 else lines


def refuse(problems: Sequence[str]) -> None:
    """Raise all of them as one DataError; nothing when there are none."""
    if problems:
        raise DataError("\n".join(problems))
