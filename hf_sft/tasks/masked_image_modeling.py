"""masked-image-modeling: parts of images without labels are hidden and to be seen again."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from datasets import Dataset, DatasetDict
from pydantic import Field
from torch.utils.data import DataLoader

from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.tasks.augmentation import DrawnRows, Preset, alone
from hf_sft.tasks.base import Task
from hf_sft.tasks.image_inputs import as_images, image_names, image_problems, read_images
from hf_sft.tasks.image_masks import (
    DRAW,
    ROW,
    MaskCollator,
    MaskTransform,
    fill_positions_,
    grid_of,
    side_of,
)
from hf_sft.tasks.pictures import picture
from hf_sft.tasks.reconstruction import (
    SCALARS,
    Method,
    Reconstruction,
    StreamingReconstruction,
    reconstruct,
    side_by_side,
)
from hf_sft.tasks.text_inputs import no_classes

AUTO = {"simmim": "AutoModelForMaskedImageModeling", "mae": "AutoModelForPreTraining"}
MAE_TYPES = ("vit_mae",)
RATIO = {"simmim": 0.6, "mae": 0.75}  # the papers'
SHOWN = 6  # images in the report


class MaskedImageModeling(Task):
    """Images -> squares of them hidden, whose pixels are to be found from the rest.

    ``method``: simmim hides ⌈mask_ratio · squares⌉ squares of ``mask_size`` pixels behind a mask
    token and learns mean |x̂ − x| of them (Xie et al. 2022, arXiv 2111.09886; ViT, DeiT, Swin,
    FocalNet); mae leaves hidden patches out of the encoder and learns mean (x̂ − x)² by a decoder
    (He et al. 2022, arXiv 2111.06377; ViTMAE), with ``normalized`` of patches with mean 0 and
    deviation 1. In training, squares are drawn for every row and epoch from the training's seed;
    elsewhere once, from ``mask_seed`` and the row's number, so that numbers repeat.

    Keys:
        image: a column.
        method: simmim (ViT, DeiT, Swin, FocalNet) or mae (ViTMAE).
        mask_ratio: the hidden share; 0.6, or 0.75 with mae, by default.
        mask_size: pixels of simmim's squares; 32 where they fit, else a patch, by default.
        mask_seed: of what is hidden outside of training.
        normalized: mae learns patches of mean 0 and deviation 1.
        augment: what is done to training images before anything is hidden.
    """

    type: Literal["masked-image-modeling"] = "masked-image-modeling"
    auto_processor: ClassVar[str] = "AutoImageProcessor"
    selection_metric: ClassVar[str] = "reconstruction_error"
    greater_is_better: ClassVar[bool] = False
    lower_is_better: ClassVar[tuple[str, ...]] = ("relative_error",)
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    draws: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    own_weights: ClassVar[tuple[str, ...]] = ("*.mask_token",)
    image: str = "image"
    method: Method = "simmim"
    mask_ratio: float | None = Field(None, gt=0, lt=1)
    mask_size: int | None = Field(None, ge=1)
    mask_seed: int = Field(0, ge=0, lt=2**32)
    normalized: bool = False
    augment: Preset = "none"

    @property
    def auto_class(self) -> str:
        return AUTO[self.method]

    @property
    def label_names(self) -> list[str]:
        """What `summary` needs beside the model's answer; MAE's answer has its mask in it."""
        return ["pixel_values", "bool_masked_pos"][: 1 + (self.method == "simmim")]

    def auto_model(self, config: Any) -> Any:
        auto, kind = super().auto_model(config), config.model_type
        known = MAE_TYPES if self.method == "mae" else _types(auto)
        if kind in known:
            return auto
        other = next((m for m in AUTO if m != self.method and kind in _all_types(m)), None)
        remedy = f"Set task.method: {other}." if other else "Name a model of one of these types."
        raise SourceError(
            f"model.name: a {kind} model cannot do masked image modelling by task.method "
            f"{self.method!r}, which needs one of these types: {', '.join(known)}. {remedy}"
        )

    def columns(self) -> dict[str, str]:
        return {"task.image": self.image}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        no_classes(keep)
        self.refuse_missing(data)
        problems = self._setting_problems()
        data = DatasetDict({split: as_images(rows, self.image) for split, rows in data.items()})
        for split, rows in data.items():
            problems += image_problems(f"data.{split}", rows, self.image)
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _setting_problems(self) -> list[str]:
        if self.method == "mae" and self.mask_size is not None:
            return ["task.mask_size: mae hides single patches. Leave it out."]
        if self.method == "simmim" and self.normalized:
            return ["task.normalized: only mae normalises patches. Leave it out."]
        return []

    def configure(self, config: Any, names: list[str]) -> None:
        """Settle how MAE hides, and that SimMIM's decoder gives as many pixels as the image has."""
        if self.method == "mae":
            config.norm_pix_loss = self.normalized
            config.mask_ratio = self._ratio
        elif hasattr(config, "encoder_stride"):
            stages = len(getattr(config, "depths", [1]))
            config.encoder_stride = side_of(config.patch_size) * 2 ** (stages - 1)

    @property
    def _ratio(self) -> float:
        return self.mask_ratio or RATIO[self.method]

    def prepare(self, processor: Any, model: Any) -> None:
        """The processor makes images of the model's size, which its loss wants."""
        if self.method == "mae":
            fill_positions_(model)
        side = side_of(model.config.image_size)
        grid_of(model.config, self.mask_size, self._ratio)
        for name in ("size", "crop_size"):
            if getattr(processor, name, None):
                setattr(processor, name, {"height": side, "width": side})

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        grid = grid_of(config, self.mask_size, self._ratio)
        transform = MaskTransform(processor, self.image, grid, self.mask_seed)
        rows = rows.select_columns([self.image])
        return rows.add_column(ROW, range(len(rows))).with_transform(transform)

    def for_training(self, rows: Dataset, processor: Any) -> DrawnRows:
        transform = rows.format["format_kwargs"]["transform"]
        augmented = replace(transform, augment=alone(self.augment))
        return DrawnRows(rows.with_transform(augmented), DRAW)

    def collator(self, processor: Any) -> Callable:
        return MaskCollator(self.method)

    def training_loss(self, rows: Dataset, smoothing: float) -> Callable | None:
        if smoothing:
            raise RecipeError(
                f"training.label_smoothing_factor: {smoothing:g} is for classes, and images have "
                "none here. Leave it out."
            )
        return None

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingReconstruction:
        return StreamingReconstruction()

    def summary(self, logits: Any, labels: Any) -> torch.Tensor:
        return self._reconstructed(logits, labels).errors

    def _reconstructed(self, answer: Any, given: Any) -> Reconstruction:
        if self.method == "mae":
            pixels = given[0] if isinstance(given, tuple | list) else given
            return reconstruct(pixels, answer[1], answer[0], "mae", self.normalized)
        answer = answer[0] if isinstance(answer, tuple) else answer
        return reconstruct(*given, answer, "simmim", False)

    def read_inputs(self, path: Path) -> Dataset:
        return read_images(path, self.image)

    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """Per image: its ``reconstruction_error``, and ``relative_error`` to that of a guess."""
        for record, _, _ in self._each(rows, model, processor, size):
            yield record

    def draw(
        self, rows: Dataset, model: Any, processor: Any, size: int, folder: Path
    ) -> Iterator[dict]:
        """A PNG per image: what was seen, what the model put there, what there was."""
        for number, (record, found, at) in enumerate(self._each(rows, model, processor, size), 1):
            name = f"{number:05d}_{Path(record['image'] or 'image').stem}.png"
            side_by_side(found, at, processor).save(folder / name)
            yield {**record, "picture": name}

    def pictures(
        self, metrics: Any, model: Any, processor: Any, rows: Dataset
    ) -> dict[str, list[dict]]:
        few = rows.select(range(min(SHOWN, len(rows))))
        shown = [
            picture(
                side_by_side(found, at, processor),
                f"error {record['reconstruction_error']:.3f}, {record['relative_error']:.2f} of a "
                "guess: seen, filled by the model, original",
                longest=480,
            )
            for record, found, at in self._each(few, model, processor, SHOWN)
        ]
        return {"reconstructions": shown}

    @torch.no_grad()
    def _each(
        self, rows: Dataset, model: Any, processor: Any, size: int
    ) -> Iterator[tuple[dict, Reconstruction, int]]:
        """Every image's record, its batch, and its place in that."""
        encoded = self.encode(rows, processor, model.config)
        names = iter(image_names(rows, self.image))
        was_training = model.training
        model.eval()
        for batch in DataLoader(encoded, size, collate_fn=self.collator(processor)):
            batch = {key: value.to(model.device) for key, value in batch.items()}
            out = model(**batch)
            answer = (out.logits, out.mask) if self.method == "mae" else out.reconstruction
            found = self._reconstructed(answer, [batch[key] for key in self.label_names])
            named = itertools.islice(names, len(found.pixels))
            for at, (name, (own, guess)) in enumerate(
                zip(named, found.errors.tolist(), strict=True)
            ):
                relative = own / guess if guess else None
                record = {"image": name, "reconstruction_error": own, "relative_error": relative}
                yield record, found, at
        model.train(was_training)


def _types(auto: Any) -> list[str]:
    return sorted(config.model_type for config in auto._model_mapping)  # private in 5.24


def _all_types(method: str) -> tuple[str, ...] | list[str]:
    return MAE_TYPES if method == "mae" else _types(getattr(transformers, AUTO[method]))
