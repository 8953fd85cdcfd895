"""COCO's json of an object's outline, read and checked: polygons and run lengths."""

import json
import math
from collections.abc import Sequence
from typing import Any

FAR = 100_000  # pixels from the corner: a corner beyond it is no place in an image
FIRST, LAST = ord("0"), ord("o")  # the characters of compressed counts, 6 bits each
Run = dict[str, Any]  # COCO's RLE: {"size": [height, width], "counts": bytes}


def run_lengths(outline: str, height: int, width: int) -> Run:
    """COCO's json of an object's outline, as RLE.

    Args:
        outline: polygons [[x0, y0, x1, y1, …], …] in pixels, or {"size", "counts"}, the counts a
            list or COCO's compressed text.

    Raises:
        ValueError: it is neither, of an image of another size, its counts do not fill the image,
            or all of it lies outside the image.
    """
    from pycocotools import mask as coco

    found = json.loads(outline)
    if isinstance(found, dict):
        if found.get("size") != [height, width]:
            raise ValueError(f"is of size {found.get('size')}, the image of {[height, width]}")
        counts = _counts(found.get("counts"))
        if sum(counts) != height * width:
            raise ValueError(
                f"has counts of {sum(counts)} pixels in all, the image has {height * width}"
            )
        return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(found, list) or not found:
        raise ValueError("is neither polygons nor RLE")
    for polygon in found:
        _check(polygon)
    if all(_outside(polygon, height, width) for polygon in found):
        raise ValueError(f"lies outside the image of {width} × {height} pixels: {_shown(found[0])}")
    return coco.merge(coco.frPyObjects(found, height, width))


def _counts(counts: Any) -> list[int]:
    """Run lengths of outside and inside in turn, from a list or from compressed text."""
    if isinstance(counts, str):
        counts = uncompressed(counts)
    if not isinstance(counts, list):
        raise ValueError("has no counts, which are a list of numbers or COCO's compressed text")
    for count in counts:
        if type(count) is not int or count < 0:
            raise ValueError(f"has the count {count!r:.40}; wanted whole numbers from 0")
    return counts


def uncompressed(text: str) -> list[int]:
    """The run lengths in COCO's compressed text.

    A number is written in groups of 5 bits, the lowest first, each as the character 48 + bits,
    + 32 while more follow; bit 16 of the last is the sign. From the fourth on, what is written is
    the difference to the number two before. Source: rleFrString in cocoapi's maskApi.c.

    Raises:
        ValueError: another character, or an end inside a number.
    """
    counts: list[int] = []
    value = shift = 0
    for place, letter in enumerate(text, 1):
        if not FIRST <= ord(letter) <= LAST:
            raise ValueError(
                f"has compressed counts with {letter!r} at place {place}, which RLE does not use"
            )
        bits = ord(letter) - FIRST
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has compressed counts that end inside a number")
    return counts


def _check(polygon: Any) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("has a polygon without three points [x0, y0, x1, y1, x2, y2, …]")
    if not all(isinstance(value, int | float) for value in polygon):
        raise ValueError("has a polygon of other things than numbers")
    far = [value for value in polygon if not math.isfinite(value) or abs(value) > FAR]
    if far:
        raise ValueError(f"has a polygon with the coordinate {far[0]}")


def _outside(polygon: Sequence[float], height: int, width: int) -> bool:
    across, down = polygon[::2], polygon[1::2]
    return max(across) <= 0 or min(across) >= width or max(down) <= 0 or min(down) >= height


def _shown(polygon: Sequence[float]) -> str:
    across, down = polygon[::2], polygon[1::2]
    return f"x {min(across):g} to {max(across):g}, y {min(down):g} to {max(down):g}"
