"""Inside: a model around a backbone seen as what its source was, a classifier of whole images."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hf_sft.layer_groups import LayerGroup, LayerGroups


@dataclass(frozen=True)
class Inside:
    """The source inside a detector or segmenter.

    Attributes:
        names: parameter or buffer of the model -> of the source's own model.
        groups: name of a layer group of the model -> its tensors in the source's own model.
        size: (height, width) in pixels that the source was trained for; None where it says none.
    """

    names: Mapping[str, str]
    groups: tuple[LayerGroup, ...] = field(default=())
    size: tuple[int, int] | None = None

    def compared(self, original: Any, collate: Callable, model: Any) -> dict[str, Any]:
        """The original with the model's backbone in it, on the same images at its own size."""
        tuned = copy.deepcopy(original)
        theirs = dict(model.named_parameters()) | dict(model.named_buffers())
        ours = dict(tuned.named_parameters()) | dict(tuned.named_buffers())
        with torch.no_grad():
            for name, own in self.names.items():
                ours[own].copy_(theirs[name])
        return {
            "tuned": tuned.to(next(model.parameters()).device),
            "head": set(),
            "collate": lambda rows: self.images(collate(rows)),
            "groups": self.groups,
        }

    def images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The images of a batch as the source takes them: no padding, one size."""
        pixels, mask = batch["pixel_values"], batch.get("pixel_mask")
        seen = [
            image if mask is None else _unpadded(image, mask[i]) for i, image in enumerate(pixels)
        ]
        size = self.size or tuple(pixels.shape[-2:])
        return {"pixel_values": torch.cat([_resized(image, size) for image in seen])}


def _unpadded(image: Tensor, mask: Tensor) -> Tensor:
    """(channels, height, width) without the rows and columns where the mask is 0 throughout."""
    height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
    return image[:, :height, :width] if height and width else image


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, channels, *size); the proportions of a source of square images are square."""
    if tuple(image.shape[-2:]) == size:
        return image[None]
    return interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)


def renamed(groups: LayerGroups, labels: Mapping[str, str]) -> tuple[LayerGroup, ...]:
    """The source's groups under the names that they have in the model around it."""
    return tuple(
        LayerGroup(labels[group.name], group.role, group.parameters, group.buffers)
        for group in groups
        if group.name in labels
    )


def source_size(processor: Any) -> tuple[int, int] | None:
    """(height, width) of what an image processor of the source makes."""
    if (timm := getattr(processor, "data_config", None)) is not None:
        return tuple(timm["input_size"][1:])
    for key in ("crop_size", "size"):
        used = getattr(processor, "do_center_crop" if key == "crop_size" else "do_resize", False)
        sizes = dict(getattr(processor, key, None) or {}) if used else {}
        if {"height", "width"} <= sizes.keys():
            return sizes["height"], sizes["width"]
        if "shortest_edge" in sizes:
            return (sizes["shortest_edge"],) * 2
    return None
