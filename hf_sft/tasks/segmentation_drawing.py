"""Masks as a person looks at them: palette PNGs, colours over the image, images side by side."""

from typing import Any

import numpy as np
import torch
from PIL import Image as Picture

from hf_sft.tasks.pictures import colours
from hf_sft.tasks.segmentation_masks import IGNORED, Objects

SHARE = 0.55  # of the class's colour where an overlay covers the image
NOTHING = 255  # in a palette PNG: no class
BACKGROUND = "background"
GAP = 4  # pixels between images side by side


def palette_png(classes: Any) -> Picture.Image:
    """(height, width) of class numbers as a palette picture: pixel values are the classes.

    Above 255 classes, a 16-bit grey picture without colours.
    """
    found = np.asarray(classes)
    if found.max(initial=0) >= NOTHING:
        return Picture.fromarray(np.where(found == IGNORED, 65535, found).astype(np.uint16))
    picture = Picture.fromarray(np.where(found == IGNORED, NOTHING, found).astype(np.uint8), "P")
    every = [*colours(NOTHING), (0, 0, 0)]
    picture.putpalette([part for colour in every for part in colour])
    return picture


def overlay(image: Picture.Image, classes: Any, clear: int | None = None) -> Picture.Image:
    """The image with every pixel tinted by its class; those of ``clear`` or none as they are."""
    found = np.asarray(classes)
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    table = np.array(colours(int(found.max(initial=0)) + 1), dtype=np.float32)
    tinted = (1 - SHARE) * pixels + SHARE * table[np.clip(found, 0, None)]
    untouched = (found == IGNORED) | (found == (IGNORED if clear is None else clear))
    return _picture(np.where(untouched[..., None], pixels, tinted))


def objects_over(image: Picture.Image, found: Objects) -> Picture.Image:
    """The image with every object tinted and edged in the colour of its class."""
    pixels = np.asarray(image.convert("RGB")).astype(np.float32)
    table = np.array(colours(int(found.classes.max()) + 1 if len(found.classes) else 1))
    for mask, category in zip(found.masks.numpy(), found.classes.tolist(), strict=True):
        pixels[mask] = (1 - SHARE) * pixels[mask] + SHARE * table[category]
        pixels[_edge(mask)] = table[category]
    return _picture(pixels)


def drawn(image: Picture.Image, target: Any, names: list[str]) -> Picture.Image:
    """A map of classes, or objects, over the image; a class ``background`` is not tinted."""
    if isinstance(target, Objects):
        return objects_over(image, target)
    clear = names.index(BACKGROUND) if BACKGROUND in names else None
    return overlay(image, torch.as_tensor(target).cpu().numpy(), clear)


def side_by_side(pictures: list[Picture.Image]) -> Picture.Image:
    """Pictures of one size in a row."""
    width, height = pictures[0].size
    whole = Picture.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number * (width + GAP), 0))
    return whole


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour outside."""
    inner = np.pad(mask, 1)
    around = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~around


def _picture(pixels: np.ndarray) -> Picture.Image:
    return Picture.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
