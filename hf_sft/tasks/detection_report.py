"""What the report shows of a detector: precision over recall, and images with their boxes."""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from hf_sft.tasks.detection_pictures import found_marks, side_by_side, true_marks
from hf_sft.tasks.image_inputs import image_names
from hf_sft.tasks.pictures import picture

SHOWN = 3  # images of each kind
MOST_CURVES = 6
PANELS = 760  # pixels that both panels of a picture may have across
CURVES = "Precision over recall at IoU .5, by class"


def shown_pictures(
    metrics: Any,
    names: list[str],
    rows: Dataset,
    column: str,
    look: Callable[[Image.Image], dict],
) -> dict[str, list[dict]]:
    """``look``: decoded image -> its ``scores``, ``labels`` and ``boxes``."""
    paths = image_names(rows, column)

    def shown(row: int) -> dict:
        image = rows[row][column].convert("RGB")
        true, found = true_marks(rows[row]["objects"], names), found_marks(look(image), names)
        right, extra, missed = metrics.mistakes[row].tolist()
        name = PurePath(paths[row] or f"row {row + 1}").name
        caption = f"{name}: {right} of {right + missed} found, {extra} too many"
        return picture(side_by_side(image, true, found, len(names)), caption, PANELS)

    mistakes = metrics.mistakes[:, 1:].sum(axis=1)
    worst = [row for row in np.argsort(-mistakes, kind="stable")[:SHOWN] if mistakes[row]]
    some = [row for row in evenly(len(rows), SHOWN) if row not in worst]
    return {
        "precision_and_recall": curves(metrics.curves, rows, names),
        "true_boxes_left,_predicted_right": [shown(int(row)) for row in some],
        "most_mistakes": [shown(int(row)) for row in worst],
    }


def evenly(count: int, most: int) -> list[int]:
    """Up to ``most`` of 0 … count − 1 with equal distances."""
    few = min(count, most)
    return [index * count // few for index in range(few)]


def curves(lines: dict[str, list], rows: Dataset, names: list[str]) -> list[dict]:
    """One chart with the curves of the classes that have most objects."""
    counts = dict.fromkeys(names, 0)
    for objects in rows["objects"]:
        for label in objects["category"]:
            counts[names[label]] += 1
    most = sorted(lines, key=lambda name: -counts[name])[:MOST_CURVES]
    kept = {name: lines[name] for name in names if name in most}
    axes = {"x": "recall", "y": "precision"}
    return [{"caption": CURVES, "lines": kept, **axes}] if kept else []
