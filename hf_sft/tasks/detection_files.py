"""Detections as files: COCO's json, and the images with their boxes drawn."""

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from hf_sft.tasks.detection_pictures import drawn, found_marks

JSON, PICTURES = "predictions.json", "pictures"
KEPT = {".jpg", ".jpeg", ".png", ".webp"}  # endings of pictures that are written as they were


class Drawing:
    """``predictions.json`` and ``pictures/`` in a folder, image by image.

    The json has COCO's form: ``images``, ``categories`` and ``annotations`` with ``bbox`` (x, y,
    width, height in pixels) and ``score``; ids count from 1.

    Args:
        names: the classes.
        paths: of all images; what they have in common is left out of their names here.
    """

    def __init__(self, folder: Path, names: list[str], paths: list[str | None]):
        self.folder, self.names = folder, names
        self.files = relative_names(paths)
        self.written: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
            "annotations": [],
        }

    def add(self, image: Image.Image, found: dict[str, Any]) -> None:
        """The next image, and ``scores``, ``labels``, ``boxes`` (corners in pixels) of it."""
        images, boxes = self.written["images"], self.written["annotations"]
        name = self.files[len(images)]
        width, height = image.size
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        for score, label, (x0, y0, x1, y1) in zip(
            *(found[key].tolist() for key in ("scores", "labels", "boxes")), strict=True
        ):
            box = [x0, y0, x1 - x0, y1 - y0]
            boxes.append(
                {"id": len(boxes) + 1, "image_id": len(images), "category_id": label + 1,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
            )  # fmt: skip
        path = self.folder / PICTURES / name
        path = path if path.suffix.lower() in KEPT else path.with_name(path.name + ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        marks = found_marks(found, self.names)
        drawn(image, marks, len(self.names), most=len(marks)).save(path)

    def close(self) -> None:
        """After the last image."""
        (self.folder / JSON).write_text(json.dumps(self.written, ensure_ascii=False), "utf-8")


def relative_names(paths: list[str | None]) -> list[str]:
    """Paths without the folder that all lie in; numbers for images that have none."""
    known = [os.path.abspath(path) for path in paths if path]
    top = os.path.commonpath([os.path.dirname(path) for path in known]) if known else ""
    return [
        os.path.relpath(os.path.abspath(path), top) if path else f"{number}"
        for number, path in enumerate(paths, 1)
    ]
