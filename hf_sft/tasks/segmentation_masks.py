"""What masks mean: the class of every pixel, or a mask per object; from pictures or outlines."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

IGNORED = -1  # in a map of classes: a pixel that counts nowhere
PADDING = -100  # Trainer's, behind what is written in numbers
Run = dict[str, Any]  # COCO's RLE: {"size": [height, width], "counts": bytes}


@dataclass(frozen=True)
class Objects:
    """The objects of an image: masks (n, height, width) of bool, classes (n,), crowds (n,)."""

    masks: Tensor
    classes: Tensor
    crowds: Tensor


def numbers(mask: Picture.Image) -> np.ndarray:
    """(height, width): the number that every pixel has in the file.

    Raises:
        ValueError: pixels are colours, or shares.
    """
    if mask.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ValueError(
            f"has the form {mask.mode}: colours, where one number per pixel is wanted. Save it as "
            "a grey or palette PNG of class numbers, or name its colours with data.palette "
            "(loader mask-folder)."
        )
    return np.asarray(mask).astype(np.int64)


def class_map(mask: Picture.Image, ignore: int | None, reduce_labels: bool) -> np.ndarray:
    """(height, width): classes from 0, IGNORED where there is none.

    ``reduce_labels``: 0 in the file is no class, and 1 is the first one.
    """
    found = numbers(mask)
    classes = found - 1 if reduce_labels else found.copy()
    classes[(found == ignore) | (classes < 0)] = IGNORED
    return classes


def run_lengths(outline: str, height: int, width: int) -> Run:
    """COCO's json of an object's outline, as RLE.

    Args:
        outline: polygons [[x0, y0, x1, y1, …], …] in pixels, or {"size", "counts"}, the counts a
            list or COCO's compressed text.

    Raises:
        ValueError: it is neither, or of an image of another size.
    """
    from pycocotools import mask as coco

    found = json.loads(outline)
    if isinstance(found, dict):
        if list(found.get("size") or []) != [height, width]:
            raise ValueError(f"is of size {found.get('size')}, the image of {[height, width]}")
        counts = found.get("counts")
        if isinstance(counts, list):
            return coco.frPyObjects(found, height, width)
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode()}
        raise ValueError("has no counts")
    if not isinstance(found, list) or not found:
        raise ValueError("is neither polygons nor RLE")
    for polygon in found:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("has a polygon without three points [x0, y0, x1, y1, x2, y2, …]")
        if not all(isinstance(value, int | float) for value in polygon):
            raise ValueError("has a polygon of other things than numbers")
    return coco.merge(coco.frPyObjects(found, height, width))


def objects(found: dict[str, list], height: int, width: int) -> Objects:
    """The objects of a row (category, segmentation, iscrowd) as masks."""
    from pycocotools import mask as coco

    runs = [run_lengths(outline, height, width) for outline in found["segmentation"]]
    masks = np.zeros((len(runs), height, width), dtype=bool)
    for place, run in zip(masks, runs, strict=True):
        place[:] = coco.decode(run)
    crowds = found.get("iscrowd") or [False] * len(runs)
    return Objects(
        torch.from_numpy(masks),
        torch.tensor(found["category"], dtype=torch.int64),
        torch.tensor(crowds, dtype=torch.bool),
    )


def painted(found: Objects, background: bool) -> np.ndarray:
    """(height, width): objects painted over each other, the largest first.

    ``background``: pixels of no object are class 0, and the objects' classes count from 1;
    otherwise they are IGNORED.
    """
    height, width = found.masks.shape[1:]
    classes = np.full((height, width), 0 if background else IGNORED, dtype=np.int64)
    masks = found.masks.numpy()
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        classes[masks[index]] = int(found.classes[index]) + background
    return classes


def written_map(classes: np.ndarray) -> list[int]:
    """A map as numbers [height, width, class, length, class, length, …], row by row."""
    flat = classes.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    return [*classes.shape, *np.stack([flat[starts], lengths], 1).ravel().tolist()]


def read_map(written: Tensor) -> Tensor:
    """(height, width) of what `written_map` wrote, on its device; the padding is left out."""
    height, width = written[:2].tolist()
    runs = written[2:][written[2:] != PADDING].view(-1, 2)
    return torch.repeat_interleave(runs[:, 0], runs[:, 1]).view(height, width)


def written_objects(found: Objects) -> list[int]:
    """Objects as numbers: [height, width, then class, crowd, n, and n run lengths of each]."""
    written = list(found.masks.shape[1:])
    for mask, category, crowd in zip(found.masks, found.classes, found.crowds, strict=True):
        flat = np.concatenate([[False], mask.numpy().ravel()])
        edges = np.flatnonzero(np.diff(flat))
        lengths = np.diff(np.concatenate([[0], edges, [flat.size - 1]])).tolist()
        written += [int(category), int(crowd), len(lengths), *lengths]
    return written


def read_objects(written: Tensor) -> Objects:
    """What `written_objects` wrote."""
    rest = written[written != PADDING].tolist()
    height, width, place = rest[0], rest[1], 2
    masks, classes, crowds = [], [], []
    while place < len(rest):
        category, crowd, count = rest[place : place + 3]
        lengths = torch.tensor(rest[place + 3 : place + 3 + count])
        inside = torch.arange(count) % 2 == 1
        masks.append(torch.repeat_interleave(inside, lengths).view(height, width))
        classes.append(category)
        crowds.append(bool(crowd))
        place += 3 + count
    stacked = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)
    return Objects(stacked, torch.tensor(classes, dtype=torch.int64), torch.tensor(crowds).bool())
