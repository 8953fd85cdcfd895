"""Boxes on images: for the report, and for a person who looks at predictions."""

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hf_sft.tasks.pictures import colours

SIDE = 360  # pixels of a panel's longer side
GAP = 8
MOST_NAMED = 12  # boxes of an image that still leave room for words

Mark = tuple[int, Sequence[float], str]  # class, x0, y0, x1, y1 in pixels, what to write


def drawn(image: Image.Image, marks: Sequence[Mark], count: int, most: int = MOST_NAMED):
    """The image with its boxes, each in its class's colour; up to ``most`` with their words.

    ``count``: classes there are.
    """
    shown = image.convert("RGB")
    pen, palette = ImageDraw.Draw(shown), colours(count)
    side = max(shown.size)
    width, font = max(2, round(side / 250)), ImageFont.load_default(max(10, round(side / 36)))
    for label, box, _ in marks:
        pen.rectangle(_ordered(box), outline=palette[label], width=width)
    for label, box, words in marks if len(marks) <= most else ():
        x, y = max(0, box[0]), max(0, box[1])
        left, top, right, bottom = pen.textbbox((x, y), words, font=font)
        x, y = min(x, max(0, shown.width - (right - left))), max(0, y - (bottom - y))
        pen.rectangle(pen.textbbox((x, y), words, font=font), fill=palette[label])
        pen.text((x, y), words, fill=readable_on(palette[label]), font=font)
    return shown


def readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on a light colour and white on a dark one, by the luma of ITU-R BT.601."""
    red, green, blue = colour
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    return (0, 0, 0) if light else (255, 255, 255)


def _ordered(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, max(x0, x1), max(y0, y1)]


def side_by_side(
    image: Image.Image, true: Sequence[Mark], found: Sequence[Mark], count: int
) -> Image.Image:
    """The image twice, small: with what is there, and with what was found."""
    scale = min(1.0, SIDE / max(image.size))
    small = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size])
    whole = Image.new("RGB", (2 * small.width + GAP, small.height), (255, 255, 255))
    for place, marks in ((0, true), (small.width + GAP, found)):
        scaled = [(label, [v * scale for v in box], words) for label, box, words in marks]
        whole.paste(drawn(small, scaled, count), (place, 0))
    return whole


def true_marks(objects: dict[str, list], names: list[str]) -> list[Mark]:
    """Of a checked row's objects."""
    return [
        (label, [x, y, x + width, y + height], names[label])
        for (x, y, width, height), label in zip(objects["bbox"], objects["category"], strict=True)
    ]


def found_marks(found: dict[str, Any], names: list[str]) -> list[Mark]:
    """Of what ``post_process_object_detection`` gave for an image."""
    return [
        (label, box, f"{names[label]} {score:.2f}")
        for score, label, box in zip(
            *(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True
        )
    ]
