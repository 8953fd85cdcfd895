"""A file of COCO's json, checked and read: every wrong entry is named by its id."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from hf_sft.errors import DataError, listing
from hf_sft.json_text import parsed
from hf_sft.loaders.objects import Annotated, Thing, few, inside, refuse, sizes

FORM = '{"images": [{"id", "file_name"}], "annotations": […], "categories": [{"id", "name"}]}'


def read_coco(
    path: Path, folder: Path | None, split: str, check_size: bool
) -> tuple[list[Annotated], list[str]]:
    """The images with their objects, and the names of the categories in the order of their ids.

    Ids need not be contiguous. Images without objects stay.

    Args:
        path: the json.
        folder: where the images lie; None for beside the json.
        split: the recipe key that names the json, for messages.
        check_size: whether the json's width and height must be the image's.

    Raises:
        DataError: all that is wrong, the first few of each kind.
    """
    place = f"data.{split}: '{path.name}'"
    found = _object(path, place)
    problems, names = _categories(found["categories"], place)
    wrong, images = _images(found["images"], folder or path.parent, place)
    problems += wrong
    refuse(problems)
    problems = _add_things(found["annotations"], images, names, place)
    problems += _measure(found["images"], images, check_size, place)
    refuse(problems)
    return list(images.values()), list(names.values())


def _object(path: Path, place: str) -> dict[str, list]:
    try:
        found = parsed(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{place} cannot be read as json ({error}). Wanted: {FORM}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{place} holds {type(found).__name__}, not an object. Wanted: {FORM}.")
    for key in ("images", "annotations", "categories"):
        rows = found.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(
                f"{place} has no list of objects {key!r}, but the keys {listing(found)}. "
                f"Wanted: {FORM}."
            )
    return found


def _categories(rows: list[dict], place: str) -> tuple[list[str], dict[Any, str]]:
    """Problems, and id -> name in the order of the ids."""
    good = [row for row in rows if _is_id(row.get("id")) and _is_name(row.get("name"))]
    bad = [
        f"category {row!r:.80} needs an id and a name. Give it both."
        for row in rows
        if row not in good
    ]
    bad += [
        f"category id {value!r} occurs {n} times. Give every category an id of its own, and its "
        "annotations that id."
        for value, n in _repeated(good, "id")
    ]
    bad += [
        f"two categories are named {name!r}. Name them apart, or give them one id."
        for name, _ in _repeated(good, "name")
    ]
    if not rows:
        bad.append("has no categories. Add a category with id and name for each class.")
    ranked = sorted(good, key=lambda row: (isinstance(row["id"], str), row["id"]))
    return few(place, bad), {row["id"]: row["name"].strip() for row in ranked}


def _images(rows: list[dict], folder: Path, place: str) -> tuple[list[str], dict[Any, Annotated]]:
    """Problems, and id -> image without its size and objects."""
    bad, images = [], {}
    for number, row in enumerate(rows, 1):
        name, key = row.get("file_name"), row.get("id")
        file = inside(folder, name)
        if not _is_id(key):
            bad.append(f"image {number} has id {key!r}; wanted a number. Give every image one.")
        elif file is None:
            bad.append(
                f"image id {key} has file_name {name!r}; wanted a path below the folder of "
                "images, without '..'. Correct it, or data.images."
            )
        else:
            images[key] = Annotated(file, name, 0, 0, [], key)
    bad += [
        f"image id {value} occurs {n} times. Give every image an id of its own, and its "
        "annotations that id."
        for value, n in _repeated(rows, "id")
    ]
    bad += [
        f"file_name {value!r} occurs {n} times. Keep one entry, and give its id to the "
        "annotations of all."
        for value, n in _repeated(rows, "file_name")
    ]
    return few(place, bad), images


def _add_things(rows: list[dict], images: dict[Any, Annotated], names: dict, place: str) -> list:
    """Give every image its objects; what is wrong with some."""
    bad = []
    for number, row in enumerate(rows, 1):
        what = f"annotation id {row['id']!r}" if "id" in row else f"annotation number {number}"
        if (image := images.get(_key(row.get("image_id")))) is None:
            bad.append(
                f"{what} is of image_id {row.get('image_id')!r}, and there is none such. Correct "
                "the id, add the image, or remove the annotation."
            )
        elif (problem := _problem(row, names)) is not None:
            bad.append(f"{what} of '{image.name}' {problem}")
        else:
            image.things.append(_thing(row, names))
    twice = [
        f"annotation id {value!r} occurs {n} times. Remove the copies, or number them anew."
        for value, n in _repeated(rows, "id")
    ]
    return few(place, bad) + few(place, twice)


def _problem(row: dict, names: dict[Any, str]) -> str | None:
    if _key(row.get("category_id")) not in names:
        known = listing(f"{key} {name}" for key, name in names.items())
        return (
            f"has category_id {row.get('category_id')!r}; the file's categories: {known}. Correct "
            "the id, add the category, or remove the annotation."
        )
    box = row.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side) for side in box)):
        return f"has bbox {box!r:.60}; wanted [x, y, width, height] in pixels. Correct it."
    if not _is_number(row.get("area", 0)):
        return f"has area {row['area']!r:.40}; wanted square pixels. Correct it or leave it out."
    if row.get("iscrowd", 0) not in (0, 1):
        return f"has iscrowd {row['iscrowd']!r:.40}; wanted 0 or 1. Correct it or leave it out."
    return None


def _thing(row: dict, names: dict[Any, str]) -> Thing:
    x, y, width, height = (float(side) for side in row["bbox"])
    shape = row.get("segmentation")
    return Thing(
        (x, y, width, height),
        names[row["category_id"]],
        float(row.get("area", width * height)),
        bool(row.get("iscrowd", 0)),
        segmentation=json.dumps(shape, separators=(",", ":")) if shape else None,
    )


def _measure(rows: list[dict], images: dict[Any, Annotated], check: bool, place: str) -> list[str]:
    """Give every image the size of its file; the files that are missing, broken or others."""
    found, bad = sizes([image.path for image in images.values()])
    stated = {row["id"]: (row.get("width"), row.get("height")) for row in rows}
    differ = []
    for (key, image), size in zip(images.items(), found, strict=True):
        image.width, image.height = size
        if check and size != (0, 0) and None not in stated[key] and stated[key] != size:
            differ.append(
                f"says {stated[key][0]} × {stated[key][1]} pixels of '{image.name}', which has "
                f"{size[0]} × {size[1]}: its boxes would be elsewhere. Correct the one or the "
                "other, or set data.check_size: false if the boxes are right."
            )
    return few(f"{place} names an image that is no good:", bad) + few(place, differ)


def _repeated(rows: list[dict], key: str) -> list[tuple[Any, int]]:
    counts = Counter(row[key] for row in rows if isinstance(row.get(key), int | str))
    return [(value, count) for value, count in counts.items() if count > 1]


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _key(value: Any) -> Any:
    """Something that may be looked up: a list is no id."""
    return value if _is_id(value) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
