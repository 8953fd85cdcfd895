"""What a segmentation model finds in images: readable records, and files of masks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as Picture
from torch import Tensor

from hf_sft.tasks.image_inputs import image_names
from hf_sft.tasks.segmentation_drawing import drawn, palette_png
from hf_sft.tasks.segmentation_masks import Objects
from hf_sft.tasks.segmentation_overlap import answered
from hf_sft.tasks.segmentation_precision import found_objects
from hf_sft.visible import one_line

QUALITY = 90


@dataclass(frozen=True)
class Found:
    """An image and what was found in it: a map of classes, or objects with their scores."""

    name: str | None
    image: Picture.Image
    target: Any
    scores: Tensor | None = None


@torch.no_grad()
def found_in(
    rows: Dataset, column: str, model: Any, processor: Any, size: int, threshold: float | None
) -> Iterator[Found]:
    """The processor's own post-processing at each image's size; of objects those above threshold.

    ``threshold``: None for maps of classes.
    """
    for start in range(0, len(rows), size):
        part = rows.select(range(start, min(start + size, len(rows))))
        images = [image.convert("RGB") for image in part[column]]
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        outputs = model(pixel_values=pixels)
        sizes = [(image.height, image.width) for image in images]
        for name, image, answer in zip(
            image_names(part, column),
            images,
            _answers(processor, outputs, sizes, threshold),
            strict=True,
        ):
            yield Found(name, image, *answer)


def _answers(processor: Any, outputs: Any, sizes: list, threshold: float | None) -> list[tuple]:
    keys = ("logits",) if "logits" in outputs else ("class_queries_logits", "masks_queries_logits")
    named, _ = answered([outputs[key] for key in keys])
    if threshold is None:
        maps = processor.post_process_semantic_segmentation(named, target_sizes=sizes)
        return [(found.cpu(),) for found in maps]
    return [
        (Objects(m.cpu(), c.cpu(), torch.zeros(len(c)).bool()), s.cpu())
        for m, s, c in found_objects(processor, named, threshold, sizes)
    ]


def records(found: Found, names: list[str]) -> Iterator[dict]:
    """One record of an image with the pixels of every class, or one per object."""
    shown = {"image": found.name}
    if found.scores is None:
        counts = np.bincount(found.target.numpy().ravel(), minlength=len(names))
        size = {"width": found.image.width, "height": found.image.height}
        areas = {f"pixels({name})": int(n) for name, n in zip(names, counts, strict=True)}
        yield {**shown, **size, **areas}
        return
    if not len(found.scores):  # an image without objects is told as well
        yield {**shown, "label": None, "score": None, "area": None, "bbox": None}
    objects = zip(_runs(found.target), found.scores, found.target.classes, strict=True)
    for run, score, category in objects:
        yield {**shown, "label": names[category], "score": round(float(score), 6), **_sizes(run)}


def _runs(found: Objects) -> list[dict]:
    """Masks as COCO's RLE."""
    from pycocotools import mask as coco

    return [coco.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in found.masks]


def _sizes(run: dict) -> dict[str, Any]:
    from pycocotools import mask as coco

    return {"area": int(coco.area(run)), "bbox": [float(side) for side in coco.toBbox(run)]}


class MaskWriter:
    """Writes ``masks/`` or ``results.json``, and ``overlays/``, into a folder.

    Masks are palette PNGs whose pixel values are the classes, which ``classes.txt`` names; objects
    are COCO's results: file_name, category_id (from 1, in the order of ``classes.txt``), RLE,
    bbox, score.
    """

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names, self.results, self.taken = folder, names, [], set()
        (folder / "overlays").mkdir()
        lines = "".join(f"{one_line(name)}\n" for name in names)  # a name is a line
        (folder / "classes.txt").write_text(lines, "utf-8")

    def write(self, found: Found) -> None:
        """The files of one image."""
        stem = self._stem(found.name)
        overlay = drawn(found.image, found.target, self.names)
        overlay.save(self.folder / "overlays" / f"{stem}.jpg", quality=QUALITY)
        if found.scores is None:
            (self.folder / "masks").mkdir(exist_ok=True)
            palette_png(found.target).save(self.folder / "masks" / f"{stem}.png")
            return
        objects = zip(_runs(found.target), found.scores, found.target.classes, strict=True)
        for run, score, category in objects:
            self.results.append(
                {
                    "image_id": stem,
                    "file_name": Path(found.name or stem).name,
                    "category_id": int(category) + 1,
                    "category": self.names[category],
                    "segmentation": {"size": run["size"], "counts": run["counts"].decode()},
                    **_sizes(run),
                    "score": float(score),
                }
            )

    def close(self) -> None:
        """After the last image."""
        if not (self.folder / "masks").exists():
            text = json.dumps(self.results)
            (self.folder / "results.json").write_text(text, "utf-8")

    def _stem(self, name: str | None) -> str:
        """The image's name without its ending; numbered where another folder has the same."""
        stem = Path(name).stem if name else f"image{len(self.taken) + 1}"
        free, number = stem, 1
        while free in self.taken:
            number += 1
            free = f"{stem}_{number}"
        self.taken.add(free)
        return free
