"""Folders of masks beside their images, and what the pixels of masks say about the classes."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

from hf_sft.images import each, problem_of

MASKS = ("masks", "mask", "segmentationclass", "labels", "annotations", "gt", "gtfine")
PICTURES = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "photos")
VOID = 255  # what most sets paint over what is no class
BINARY = ("background", "object")  # names of 0 and VOID where masks hold nothing else
SEEN = 200  # masks that are looked at to find the classes
MOST_CLASSES = 256
LEAST_PAIRS = 0.5  # share of images that have a mask, for two folders to belong together


def mask_block(
    path: Path, images: Sequence[Path], written: Callable[[Path], str]
) -> dict[str, Any] | None:
    """The ``mask-folder`` block of a folder with images and masks; None where there are none."""
    names = {part for file in images for part in file.relative_to(path).parts[:-1]}
    masks = _first(names, MASKS)
    pictures = _first(names - {masks}, PICTURES)
    if masks is None or pictures is None:
        return None
    drawn = [file for file in images if masks in file.relative_to(path).parts[:-1]]
    seen = [file for file in images if pictures in file.relative_to(path).parts[:-1]]
    suffix = _suffix([file.stem for file in seen], [file.stem for file in drawn])
    if suffix is None:
        return None
    block: dict[str, Any] = {"type": "mask-folder", "path": written(path)}
    block |= {"images": pictures} if pictures != "images" else {}
    block |= {"masks": masks} if masks != "masks" else {}
    block |= {"suffix": suffix} if suffix else {}
    return block | _classes(path, drawn)


def _first(names: set[str], known: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in sorted(names, reverse=True)}
    return next((lower[name] for name in known if name in lower), None)


def _suffix(images: list[str], masks: list[str]) -> str | None:
    """What follows an image's name in its mask's; None where names have nothing in common."""
    have = set(masks)
    least = max(1, LEAST_PAIRS * len(images))
    if len(have & set(images)) >= least:
        return ""
    endings: Counter = Counter()
    stems = set(images)
    for mask in masks:
        endings.update(mask[cut:] for cut in range(1, len(mask)) if mask[:cut] in stems)
    if not endings:
        return None
    (suffix, count) = max(endings.items(), key=lambda found: (found[1], len(found[0])))
    return suffix if count >= least else None


def _classes(path: Path, masks: Sequence[Path]) -> dict[str, Any]:
    """``palette`` of coloured masks, ``classes`` of numbered ones without a classes.txt."""
    step = max(1, len(masks) // SEEN)
    found = [values for values in each(_values, sorted(masks)[::step]) if values is not None]
    colours = sorted({value for values in found for value in values if isinstance(value, tuple)})
    numbers = {value for values in found for value in values if isinstance(value, int)}
    if colours:
        named = {f"class_{i}": list(colour) for i, colour in enumerate(colours[:MOST_CLASSES])}
        return {"palette": named}
    if numbers == {0, VOID} and (palette := _both(path, sorted(masks)[::step])):
        return {"palette": palette}
    if (path / "classes.txt").is_file() or not numbers - {VOID}:
        return {}
    count = max(2, *(number + 1 for number in numbers - {VOID}))
    return {"classes": [f"class_{number}" for number in range(count)]}


def _both(path: Path, masks: Sequence[Path]) -> dict[str, list[int]] | None:
    """The palette of masks of 0 and 255 alone, where 255 is a class; None if it needs no two."""
    seen = {colour for colours in each(_colours, masks) for colour in colours}
    if len(seen) != len(BINARY):
        return None
    file = path / "classes.txt"
    text = file.read_text("utf-8-sig") if file.is_file() else ""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    names = names if len(set(names)) == len(names) == len(BINARY) else BINARY
    return {name: list(colour) for name, colour in zip(names, sorted(seen), strict=True)}


def _values(path: Path) -> list[int | tuple[int, int, int]] | None:
    """The numbers or colours in a mask; None for a file that is broken."""
    if problem_of(path) is not None:
        return None
    with Picture.open(path) as picture:
        if picture.mode not in ("RGB", "RGBA"):
            return np.unique(np.asarray(picture)).astype(int).tolist()
    return _colours(path)


def _colours(path: Path) -> list[tuple[int, int, int]]:
    """The colours in a mask; none of a broken one, or one of 16 bits."""
    if problem_of(path) is not None:
        return []
    with Picture.open(path) as picture:
        if picture.mode.startswith("I"):
            return []
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return [tuple(colour) for colour in np.unique(pixels, axis=0).tolist()]
