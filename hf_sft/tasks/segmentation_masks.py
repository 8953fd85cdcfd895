"""What masks mean: the class of every pixel, or a mask per object; from pictures or outlines."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from hf_sft.tasks.segmentation_runs import run_lengths

IGNORED = -1  # in a map of classes: a pixel that counts nowhere
PADDING = -100  # Trainer's, behind what is written in numbers


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


def objects(found: dict[str, list], height: int, width: int) -> Objects:
    """The objects of a row (category, segmentation, iscrowd) as masks; none without a pixel.

    An outline between the middles of pixels can neither be learned nor be found.
    """
    from pycocotools import mask as coco

    runs = [run_lengths(outline, height, width) for outline in found["segmentation"]]
    kept = [number for number, run in enumerate(runs) if coco.area(run) > 0]
    masks = np.zeros((len(kept), height, width), dtype=bool)
    for place, number in zip(masks, kept, strict=True):
        place[:] = coco.decode(runs[number])
    crowds = found.get("iscrowd") or [False] * len(runs)
    return Objects(
        torch.from_numpy(masks),
        torch.tensor([found["category"][number] for number in kept], dtype=torch.int64),
        torch.tensor([crowds[number] for number in kept], dtype=torch.bool),
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
