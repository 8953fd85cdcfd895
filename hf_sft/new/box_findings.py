"""What looks wrong in boxes: outside their image, without area, tiny, drawn twice, none at all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Image

from hf_sft.images import each, size_or_problem
from hf_sft.new.findings import MOST_ROWS, Finding, counted

BEYOND = 1.0  # pixels that a box may reach over the edge: rounding
TINY = 8  # pixels; a smaller side is lost where the model's first layers halve the image
TWICE = 0.9  # intersection over union from which two boxes of a class are one object
WHOLE = 0.98  # share of the image
MANY = 100  # what detectors of the DETR kind can find in one image


@dataclass
class _Seen:
    """Boxes of one kind: how many, in which rows, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, row: int, count: int, example: str) -> None:
        if count == 0:
            return
        self.count += count
        self.rows.append(row)
        self.example = self.example or example


KINDS = {  # kind -> what is said of the boxes; {} is how many
    "boxes outside": "{} beyond the edge of the image. `run` refuses them, or cuts them off with "
    "task.mend_boxes: true.",
    "boxes without area": "{} without area. `run` refuses them, or leaves them out with "
    "task.mend_boxes: true.",
    "tiny boxes": "{} with a side under " + f"{TINY} pixels; smaller still where the model shrinks "
    "the image. A larger task.image_size may be needed.",
    "boxes drawn twice": "{} covering" + f" {TWICE:.0%} of another one of its class and back: "
    "one object, counted twice.",
    "one object, two classes": "{} equal to a box of another class. One of the two is wrong.",
    "boxes of the whole image": "{} as large as the whole image: classification, not detection, or "
    "a wrong box.",
}


def box_findings(split: str, rows: Dataset, keys: dict[str, str]) -> list[Finding]:
    """All of them for one split; ``keys``: columns and fields as the task names them.

    Boxes are x, y, width, height in pixels.
    """
    seen = {kind: _Seen() for kind in KINDS}
    empty, many = [], []
    fields = rows.features[keys["objects"]]
    kind = (
        getattr(fields.get(keys["category"]), "feature", None) if isinstance(fields, dict) else None
    )
    for number, (name, size, boxes, classes) in enumerate(_rows(rows, keys), 1):
        if len(boxes) == 0:
            empty.append(number)
            continue
        if len(boxes) > MANY:
            many.append(number)
        words = [kind.names[value] if isinstance(kind, ClassLabel) else value for value in classes]
        for what, wrong in _wrong(boxes, np.array([str(word) for word in words]), size).items():
            places = np.flatnonzero(wrong)
            if len(places):
                sides = ", ".join(f"{side:g}" for side in boxes[places[0]].round(1).tolist())
                shown = f"{split} row {number} '{name}': {words[places[0]]} [{sides}]"
                seen[what].add(number, len(places), f"{shown} of {size[0]} × {size[1]}")
    found = [
        Finding(what, f"{split}: " + KINDS[what].format(_boxes(of.count)), of.count,
                tuple(of.rows[:MOST_ROWS]), of.example)
        for what, of in seen.items() if of.count
    ]  # fmt: skip
    return found + _of_images(split, empty, many)


def _boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count} boxes"


def _of_images(split: str, empty: list[int], many: list[int]) -> list[Finding]:
    found = []
    if empty:
        text = (
            f"{split}: {counted(len(empty), 'image')} without objects. They teach what is nothing, "
            "if nothing is there; if nobody looked, remove them."
        )
        found.append(Finding("images without objects", text, len(empty), tuple(empty[:MOST_ROWS])))
    if many:
        text = (
            f"{split}: {counted(len(many), 'image')} with more than {MANY} objects, more than "
            "detectors of the DETR kind have queries for. Cut such images into parts."
        )
        found.append(Finding("crowded images", text, len(many), tuple(many[:MOST_ROWS])))
    return found


def _rows(
    rows: Dataset, keys: dict[str, str]
) -> Iterator[tuple[str, tuple[int, int], np.ndarray, Sequence[Any]]]:
    """Name, size (width, height), boxes (n, 4) and classes of every image that can be opened."""
    images = rows.cast_column(keys["image"], Image(decode=False))
    known = {"width", "height"} <= set(rows.column_names)
    looked = (
        zip(rows["width"], rows["height"], strict=True)
        if known
        else each(size_or_problem, images[keys["image"]])
    )
    columns = images.select_columns([keys["image"], keys["objects"]])
    for row, size in zip(columns, looked, strict=True):
        objects = row[keys["objects"]] or {}
        if isinstance(objects, list):
            objects = {
                key: [one[key] for one in objects] for key in (objects[0] if objects else ())
            }
        boxes = objects.get(keys["box"]) or []
        good = [box for box in boxes if box is not None and len(box) == 4]
        if isinstance(size, str) or len(good) < len(boxes):
            continue  # the task refuses it by name
        name = Path(row[keys["image"]]["path"] or "an image").name
        yield name, size, np.array(good, float).reshape(-1, 4), objects[keys["category"]] or []


def _wrong(boxes: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Kind -> which of an image's boxes have it; each box of a pair is told once, at the later."""
    x, y, w, h = boxes.T
    width, height = size
    flat = (w <= 0) | (h <= 0)
    over = np.max([-x, -y, x + w - width, y + h - height], axis=0)
    same = classes[:, None] == classes[None, :]
    earlier = np.tri(len(boxes), k=-1, dtype=bool)
    equal = (boxes[:, None] == boxes[None, :]).all(-1)
    alike = overlaps(boxes) >= TWICE
    return {
        "boxes outside": (over > BEYOND) & ~flat,
        "boxes without area": flat,
        "tiny boxes": ~flat & (np.minimum(w, h) < TINY),
        "boxes drawn twice": ~flat & (alike & same & earlier).any(1),
        "one object, two classes": ~flat & (equal & ~same & earlier).any(1),
        "boxes of the whole image": w * h >= WHOLE * width * height,
    }


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """(n, n) intersection over union of boxes x, y, width, height; 0 for boxes without area."""
    upper, lower = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(lower[:, None], lower) - np.maximum(upper[:, None], upper)
    shared = np.clip(sides, 0, None).prod(-1)
    area = np.clip(boxes[:, 2:], 0, None).prod(-1)
    union = area[:, None] + area - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
