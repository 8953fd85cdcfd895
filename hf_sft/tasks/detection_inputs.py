"""An image and its boxes -> what a detector takes, decoded once and augmented on the way."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_sft.tasks.augmentation import Preset, with_places

LEAST = 1.0  # pixels; a box that augmentation leaves smaller is dropped


class Detectable:
    """A batch of rows -> ``pixel_values``, ``pixel_mask``, ``labels``; named, so it can be hashed.

    Labels are relative to the image as it is before padding, as the pretrained models and the
    processors' ``post_process_object_detection`` have it: centre x, y, width, height in 0..1.
    Crowds are no examples of an object and are left out.

    Args:
        processor: the model's image processor.
        image: the column of images. ``objects`` is that of the objects, where there is one.
        augment: for rows of train; it draws from torch's own generator.
    """

    def __init__(self, processor: Any, image: str, augment: Preset = "none"):
        self.processor, self.image = processor, image
        self.augment = Augment(augment) if augment != "none" else None

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        found: dict[str, list] = {"pixel_values": [], "pixel_mask": []}
        labels = []
        for index, image in enumerate(batch[self.image]):
            picture = image.convert("RGB")
            if "objects" in batch:
                boxes, classes = examples(batch["objects"][index])
                if self.augment is not None:
                    picture, boxes, classes = self.augment(picture, boxes, classes)
                labels.append({"class_labels": classes, "boxes": relative(boxes, picture.size)})
            inputs = self.processor(picture, return_tensors="pt")
            pixels = inputs["pixel_values"][0]
            found["pixel_values"].append(pixels)
            mask = inputs.get("pixel_mask")
            whole = torch.ones(pixels.shape[-2:], dtype=torch.int64)
            found["pixel_mask"].append(whole if mask is None else mask[0])
        return {**found, **({"labels": labels} if labels else {})}


def examples(objects: dict[str, list]) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) as x, y, width, height in pixels and classes (n,) of what is no crowd."""
    kept = [i for i, crowd in enumerate(objects["iscrowd"]) if not crowd]
    boxes = torch.tensor([objects["bbox"][i] for i in kept], dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor([objects["category"][i] for i in kept], dtype=torch.int64)


def relative(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """x, y, width, height in pixels -> centre x, y, width, height as shares of (width, height)."""
    centred = torch.cat([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    return centred / torch.tensor([*size, *size], dtype=torch.float32)


class Augment:
    """A preset of `augmentation.with_places` on one image; boxes go with it, or are dropped."""

    def __init__(self, preset: Preset):
        self.preset = preset
        self.transform = v2.Compose([with_places(preset), v2.SanitizeBoundingBoxes(LEAST)])

    def __call__(
        self, picture: Image.Image, boxes: Tensor, classes: Tensor
    ) -> tuple[Image.Image, Tensor, Tensor]:
        """The image, x, y, width, height of the boxes that are left in it, and their classes."""
        canvas = picture.size[::-1]
        placed = tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=canvas)
        found = self.transform({"image": picture, "boxes": placed, "labels": classes})
        return found["image"], found["boxes"].as_subclass(Tensor), found["labels"]


class Padded:
    """Encoded rows -> one batch: images padded at their right and lower edge to the largest.

    Args:
        masked: the model's forward takes ``pixel_mask``, which is 1 where there is an image.
    """

    def __init__(self, masked: bool):
        self.masked = masked

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = {"pixel_values": padded([row["pixel_values"] for row in rows])}
        if self.masked:
            batch["pixel_mask"] = padded([row["pixel_mask"] for row in rows])
        if "labels" in rows[0]:
            batch["labels"] = [row["labels"] for row in rows]
        return batch


def padded(images: Sequence[Tensor]) -> Tensor:
    """(…, height, width) tensors as one, zeros beside and below the smaller ones."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    whole = images[0].new_zeros((len(images), *images[0].shape[:-2], height, width))
    for place, image in zip(whole, images, strict=True):
        place[..., : image.shape[-2], : image.shape[-1]] = image
    return whole
