"""Rows with masks -> what segmentation models take: one map of labels, or a mask per class."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_sft.tasks.segmentation_masks import IGNORED, PADDING, Objects

UNIVERSAL = ("mask2former", "maskformer")  # model types that answer with masks and their classes
TRUTH = "truth"  # key of an evaluated batch: the target at its own size, in numbers


class Transform:
    """A batch of rows -> pixel_values, labels (or mask_labels and class_labels), and the truth.

    Labels are at the size of ``pixel_values``, resized to the nearest pixel as the processors do;
    ``truth`` stays at the image's size. A named class, so that datasets can hash it.
    """

    def __init__(self, kind: Any, processor: Any, config: Any, known: bool):
        self.kind, self.processor, self.known = kind, processor, known
        self.universal, self.ignore = config.model_type in UNIVERSAL, ignored(config)
        self.augment: Callable | None = None
        self.truth = known

    def of_training(self, augment: Callable | None) -> "Transform":
        """The same for rows of train: augmented, and without the truth."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__, augment=augment, truth=False)
        return other

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = [image.convert("RGB") for image in batch[self.kind.image]]
        targets: list[Any] = []
        if self.known:
            rows = [{key: values[i] for key, values in batch.items()} for i in range(len(images))]
            targets = [
                self.kind.target(row, image.height, image.width)
                for row, image in zip(rows, images, strict=True)
            ]
        if self.augment is not None:
            drawn = [self._augmented(*pair) for pair in zip(images, targets, strict=True)]
            images, targets = [one for one, _ in drawn], [two for _, two in drawn]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        found: dict[str, list] = {"pixel_values": list(pixels)}
        for target in targets:
            for key, value in self._labels(target, tuple(pixels.shape[-2:])).items():
                found.setdefault(key, []).append(value)
        if self.truth:
            found[TRUTH] = [torch.tensor(self.kind.written(target)) for target in targets]
        return found

    def _augmented(self, image: Any, target: Any) -> tuple[Any, Any]:
        if isinstance(target, Objects):
            image, masks = self.augment(image, tv_tensors.Mask(target.masks))
            return image, Objects(masks.as_subclass(Tensor), target.classes, target.crowds)
        image, mask = self.augment(image, tv_tensors.Mask(target[None]))
        return image, mask.as_subclass(Tensor)[0]

    def _labels(self, target: Any, size: tuple[int, int]) -> dict[str, Tensor]:
        if isinstance(target, Objects):
            single = ~target.crowds  # a crowd is no example of one object
            return _objects(_nearest(target.masks[single].byte(), size), target.classes[single])
        labels = _nearest(target[None], size)[0]
        if self.universal:
            classes = labels[labels != IGNORED].unique()
            return _objects((labels[None] == classes[:, None, None]).byte(), classes)
        return {"labels": torch.where(labels == IGNORED, self.ignore, labels)}


def ignored(config: Any) -> int:
    """The label that a model's loss leaves out: 255 in most of them."""
    own = getattr(config, "semantic_loss_ignore_index", None)
    return getattr(config, "loss_ignore_index", 255) if own is None else own


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(maps):
        return maps.new_zeros((0, *size))
    mode = v2.InterpolationMode.NEAREST_EXACT
    return v2.functional.resize(maps, list(size), interpolation=mode)


def _objects(masks: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """The masks of which a pixel is left."""
    there = masks.flatten(1).bool().any(1)
    return {"mask_labels": masks[there].float(), "class_labels": classes[there]}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Encoded rows -> one batch; masks of objects stay a list, a truth is padded with -100."""
    batch: dict[str, Any] = {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}
    if "labels" in rows[0]:
        batch["labels"] = torch.stack([row["labels"] for row in rows])
    for key in ("mask_labels", "class_labels"):
        if key in rows[0]:
            batch[key] = [row[key] for row in rows]
    if TRUTH in rows[0]:
        written = [row[TRUTH] for row in rows]
        batch[TRUTH] = torch.nn.utils.rnn.pad_sequence(written, True, PADDING)
    return batch


def transform_of(rows: Dataset) -> Transform:
    """The transform that `encode` has put on the rows."""
    return rows.format["format_kwargs"]["transform"]
