"""Boxes in pixels: what is wrong with one, and what can be mended."""

import math
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1.0  # pixels that a box may reach beyond its image: they are cut off without a word


@dataclass
class Mended:
    """How many boxes were cut at the edge of their image, and how many had no area."""

    cut: int = 0
    dropped: int = 0


def mended(
    box: Any, size: tuple[int, int], corners: bool, mend: bool, changes: Mended
) -> list[float] | str | None:
    """x, y, width, height inside an image of ``size`` (width, height).

    ``corners``: ``box`` is x0, y0, x1, y1. ``mend``: what reaches out by more than a pixel is cut
    off and counted in ``changes``; None is a box of which nothing is left. A text says what is
    wrong and what to do.
    """
    if not isinstance(box, list | tuple) or len(box) != 4:
        return f"its box is {box!r}, not four numbers. Correct it."
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in box):
        return f"its box {shown(box)} holds no finite numbers. Correct it."
    x0, y0, x1, y1 = box if corners else (box[0], box[1], box[0] + box[2], box[1] + box[3])
    if (x1 <= x0 or y1 <= y0) and not mend:
        return f"its box {shown(box)} has no area.{other_form(box, size, corners)} {REMEDY}"
    width, height = size
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > TOLERANCE and not mend:
        return (
            f"its box {shown(box)} reaches {beyond:.4g} pixels beyond the image of {width} × "
            f"{height}.{other_form(box, size, corners)} {REMEDY}"
        )
    changes.cut += beyond > TOLERANCE
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        changes.dropped += 1
        return None if mend else f"its box {shown(box)} lies outside the image. {REMEDY}"
    return [x0, y0, x1 - x0, y1 - y0]


REMEDY = "Correct it, or set task.mend_boxes: true."


def shown(box: Any) -> str:
    """A box for a person."""
    return f"[{', '.join(f'{value:.6g}' for value in box)}]"


def other_form(box: Any, size: tuple[int, int], corners: bool) -> str:
    """A hint where the numbers would fit as corners and do not as sides, or the other way round."""
    width, height = size
    a, b, c, d = box
    right, bottom = (a + c, b + d) if corners else (c, d)
    fits = a >= 0 and b >= 0 and a < right <= width + 1 and b < bottom <= height + 1
    wanted = "x, y, width, height" if corners else "x0, y0, x1, y1"
    key = "xywh" if corners else "xyxy"
    return f" As {wanted} it would fit: then set task.box_format: {key}." if fits else ""
