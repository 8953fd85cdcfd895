"""Rows with outlined objects (COCO): every outline is tried before training."""

import logging
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Image

from hf_sft import images
from hf_sft.errors import DataError, listing
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.segmentation_runs import run_lengths

log = logging.getLogger(__name__)


def checked_outlines(data: DatasetDict, image: str, objects: str, key: str) -> DatasetDict:
    """The same rows, once every object has an outline that fits its image.

    Outlines without a pixel are told; `segmentation_masks.objects` leaves them out.

    Args:
        objects: the column {category, segmentation, …} of lists.
        key: the recipe's, which wants outlines.

    Raises:
        DataError: the first few problems.
    """
    problems = [
        f"data.{split}: {objects!r} has no outlines ({wrong}), which {key} needs. Load COCO's json "
        "with segmentation, or name the column with task.objects; boxes are not masks."
        for split, rows in data.items()
        if (wrong := _wrong_kind(rows.features[objects]))
    ]
    if problems:
        raise DataError("\n".join(problems))
    for split, rows in data.items():
        problems += _problems(split, rows, image, objects)
    if problems:
        raise DataError("\n".join(problems))
    return data


def _wrong_kind(kind: Any) -> str | None:
    if not isinstance(kind, dict):
        return f"it holds {kind}"
    if missing := [key for key in ("category", "segmentation") if key not in kind]:
        return f"no {' and no '.join(missing)}"
    inner = getattr(kind["category"], "feature", None)
    return None if isinstance(inner, ClassLabel) else "its category has no class names"


def _problems(split: str, rows: Dataset, image: str, objects: str) -> list[str]:
    pair = rows.select_columns([image, objects]).cast_column(image, Image(decode=False))
    found = images.each(lambda row: _look(row[image], row[objects]), pair)
    lines, empty = [], []
    for number, seen in enumerate(found, 1):
        if isinstance(seen, str):
            lines.append(f"row {number}: {seen}")
        else:
            empty += [f"row {number} object {one}" for one in seen]
    if empty:
        log.warning(
            "data.%s: %d outlines hold no pixel, and are left out of training and of what is "
            "measured: %s.", split, len(empty), listing(empty)
        )  # fmt: skip
    return first_few(f"data.{split}", lines)


def _look(image: dict, found: dict[str, list]) -> str | list[int]:
    """What is wrong with the first bad object of a row; else the objects without a pixel."""
    from pycocotools import mask as coco

    if (problem := images.problem_of(image)) is not None:
        return problem
    width, height = images.size_of(image)
    name = image["path"] or "the image"
    empty = []
    for number, outline in enumerate(found["segmentation"], 1):
        try:
            if not coco.area(run_lengths(outline or "[]", height, width)):
                empty.append(number)
        except (ValueError, TypeError, KeyError) as error:
            return (
                f"object {number} of '{name}' has no good outline: it {error}. Correct or remove "
                "the object."
            )
    return empty
