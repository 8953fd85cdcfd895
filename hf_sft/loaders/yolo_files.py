"""The lines of a YOLO label file, as boxes and polygons in pixels."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from hf_sft.loaders.objects import Thing

OVER = 1e-3  # what rounding may add to a share of 1
ROUNDING = 1.0  # pixels by which rounding may push a box over the image's edge
BOX = 5  # values of a line with a box


def label_file(image: Path, root: Path) -> Path | None:
    """The txt of an image: in ``labels`` in place of the last ``images``, or beside the image."""
    parts = list(image.relative_to(root).parts)
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[-2::-1].index("images")
        parts[place] = "labels"
    for file in (root.joinpath(*parts).with_suffix(".txt"), image.with_suffix(".txt")):
        if file.is_file():
            return file
    return None


def read_labels(
    file: Path, names: Sequence[str], width: int, height: int
) -> tuple[list[Thing], list[str]]:
    """The objects of an image of ``width`` × ``height`` pixels, and what is wrong, by line."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        return [], [f"cannot be read ({error}). Save it as UTF-8."]
    things, problems = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                things.append(_thing(line.split(), names, width, height))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    return things, problems


def _thing(cells: list[str], names: Sequence[str], width: int, height: int) -> Thing:
    """One line.

    Raises:
        ValueError: what is wrong with it, and the remedy.
    """
    name = _name(cells[0], names)
    if len(cells) != BOX and (len(cells) < BOX + 2 or len(cells) % 2 == 0):
        raise ValueError(
            f"{len(cells)} values; wanted a class and 4 of a box, or at least 3 pairs of a "
            "polygon. Complete the line, or remove it."
        )
    shares = [_share(cell) for cell in cells[1:]]
    if len(cells) == BOX:
        x, y, w, h = shares
        box = _inside(
            ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), width, height
        )
        return Thing(box, name, box[2] * box[3])
    corners = [(x * width, y * height) for x, y in zip(shares[::2], shares[1::2], strict=True)]
    left, upper = (min(corner[axis] for corner in corners) for axis in (0, 1))
    right, lower = (max(corner[axis] for corner in corners) for axis in (0, 1))
    shape = json.dumps([[side for corner in corners for side in corner]], separators=(",", ":"))
    box = _inside((left, upper, right - left, lower - upper), width, height)
    return Thing(box, name, polygon_area(corners), segmentation=shape)


def _name(cell: str, names: Sequence[str]) -> str:
    try:
        number = float(cell)  # some tools write 0.0
    except ValueError:
        number = math.nan
    if not (number.is_integer() and 0 <= number < len(names)):
        raise ValueError(
            f"class {cell!r:.40}; wanted a number from 0 to {len(names) - 1}. Correct the line, or "
            "the names of the classes."
        )
    return names[int(number)]


def _share(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not -OVER <= value <= 1 + OVER:
        raise ValueError(
            f"{cell!r:.40} is no share of the image's side; wanted 0 to 1. Divide pixels by the "
            "image's width and height."
        )
    return min(max(value, 0.0), 1.0)


def _inside(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float]:
    """The box without what rounding pushed over the edge; one that is further out as it is."""
    x, y, w, h = box
    left, upper, right, lower = x, y, x + w, y + h
    if min(left, upper) < -ROUNDING or right > width + ROUNDING or lower > height + ROUNDING:
        return box
    left, upper, right, lower = (
        max(left, 0.0),
        max(upper, 0.0),
        min(right, width),
        min(lower, height),
    )
    return left, upper, right - left, lower - upper


def polygon_area(corners: Sequence[tuple[float, float]]) -> float:
    """½ |Σ xᵢ yᵢ₊₁ − xᵢ₊₁ yᵢ|, the shoelace formula."""
    following = [*corners[1:], corners[0]]
    return 0.5 * abs(sum(x * b - a * y for (x, y), (a, b) in zip(corners, following, strict=True)))
