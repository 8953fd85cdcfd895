"""image-segmentation: a class for every pixel, or a mask for every object."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import transformers
from datasets import Dataset, DatasetDict
from pydantic import Field, field_validator, model_validator

from hf_sft.errors import DataError, RecipeError, SourceError, listing
from hf_sft.tasks.augmentation import DrawnRows, Preset, with_places
from hf_sft.tasks.base import Task
from hf_sft.tasks.image_inputs import as_images, read_images
from hf_sft.tasks.labels import name_labels
from hf_sft.tasks.object_counts import sum_object_counts
from hf_sft.tasks.pictures import picture
from hf_sft.tasks.segmentation_drawing import drawn, side_by_side
from hf_sft.tasks.segmentation_encoding import TRUTH, UNIVERSAL, Transform, collate, transform_of
from hf_sft.tasks.segmentation_instance import Instance
from hf_sft.tasks.segmentation_predictions import MaskWriter, found_in, records
from hf_sft.tasks.segmentation_semantic import Semantic
from hf_sft.tasks.segmentation_weights import BalancedPixels, leave_out_as_torch_, pixel_counts

SHOWN, WIDE = 6, 640  # images in the report, pixels of the three beside each other


class ImageSegmentation(Task):
    """Images and masks; ``problem``: semantic, or instance (with MaskFormer and Mask2Former).

    ``mask``: a column of pictures whose pixels are class numbers; without it ``objects`` with
    COCO's outlines, painted over ``background`` (the name of class 0; null: such pixels do not
    count). Every image is resized to a square of ``image_size`` for the model; what is measured
    and predicted is at the image's own size.

    Keys:
        problem: classes of pixels, or a mask for every object (MaskFormer, Mask2Former).
        image, mask: columns of pictures.
        objects: a column of COCO's objects with segmentation, for instance and where there is no
            mask.
        classes: a list of names, or how many; the loader's by default.
        ignore_index: a mask's number that is no class, or null.
        reduce_labels: 0 is no class, and 1 the first one.
        background: the name of class 0 around objects, or null: such pixels do not count.
        image_size: pixels of the square that the model sees; the source's by default.
        augment: as for images of a class; masks move with their images.
        class_weights: balanced: while training every class counts the same, however many pixels of
            train it has; for semantic, and models that label pixels. Rare classes weigh a lot.
        threshold: the score from which an object is predicted.
    """

    type: Literal["image-segmentation"] = "image-segmentation"
    auto_class: ClassVar[str] = "AutoModelForSemanticSegmentation"
    auto_processor: ClassVar[str] = "AutoImageProcessor"
    in_order: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    locates: ClassVar[bool] = True
    label_names: ClassVar[list[str]] = [TRUTH]
    problem: Literal["semantic", "instance"] = "semantic"
    image: str = "image"
    mask: str = "mask"
    objects: str = "objects"
    classes: list[str] | int | None = None
    ignore_index: int | None = 255
    reduce_labels: bool = False
    background: str | None = "background"
    image_size: int | None = Field(None, ge=32, le=4096)
    augment: Preset = "none"
    class_weights: Literal["balanced"] | None = None
    threshold: float = Field(0.5, ge=0, lt=1)

    @field_validator("classes")
    @classmethod
    def _two_classes_apart(cls, value: Any) -> Any:
        count = value if isinstance(value, int) else len(set(value or ["a", "b"]))
        if count < 2 or (isinstance(value, list) and count < len(value)):
            raise ValueError("two classes or more are needed, each named once")
        return value

    @model_validator(mode="after")
    def _pixels_are_weighed(self) -> "ImageSegmentation":
        if self.class_weights and self.problem == "instance":
            raise ValueError(
                "class_weights is for problem: semantic; this is instance. Leave it out"
            )
        return self

    @property
    def kind(self) -> Semantic | Instance:
        """What the settings mean for this problem."""
        if self.problem == "instance":
            return Instance(self.image, self.objects)
        given = (self.classes, self.ignore_index, self.reduce_labels, self.background)
        return Semantic(self.image, self.mask, self.objects, *given)

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.kind.metric_names

    @property
    def selection_metric(self) -> str:
        return self.kind.selection_metric

    def auto_model(self, config: Any) -> Any:
        """By the model's type: one that labels pixels, or one that finds masks."""
        if config.model_type in UNIVERSAL:
            return transformers.AutoModelForUniversalSegmentation
        if self.problem == "instance":
            raise SourceError(
                f"model.name: {config.model_type} gives no mask per object, which task.problem: "
                f"instance needs. Take a source of type {listing(UNIVERSAL)}, or an image "
                f"classifier with model.backbone_of: {{model_type: {UNIVERSAL[0]}}}."
            )
        if type(config) not in transformers.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            raise SourceError(
                f"model.name: {config.model_type} is no segmentation model. Take Segformer, "
                "UperNet, BEiT, DPT, Mask2Former …, or an image classifier with "
                "model.backbone_of: {model_type: upernet}."
            )
        return transformers.AutoModelForSemanticSegmentation

    def columns(self) -> dict[str, str]:
        return {"task.image": self.image}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        if keep is not None:
            raise DataError("data.keep_labels: images hold several classes; leave the key out.")
        missing = [
            f"{key} names column {column!r}, but {split} has: {listing(rows.column_names)}."
            for split, rows in data.items()
            for key, column in self.kind.columns(data["train"].features).items()
            if column not in rows.column_names
        ]
        if missing:
            raise DataError("\n".join(missing))
        data = DatasetDict({split: as_images(rows, self.image) for split, rows in data.items()})
        return self.kind.check(data)

    def names(self, data: DatasetDict) -> list[str]:
        return self.kind.names(data)

    def trained_names(self, config: Any) -> list[str]:
        return [config.id2label[i] for i in range(config.num_labels)]

    def configure(self, config: Any, names: list[str]) -> None:
        name_labels(config, names)

    def prepare(self, processor: Any, model: Any) -> None:
        """Every image becomes a square: a batch needs no padding, and a map is read back whole."""
        sum_object_counts(model)
        if self.class_weights:
            leave_out_as_torch_(model)
        size = processor.size
        side = self.image_size or size.get("shortest_edge") or size.get("height") or 512
        if self.image_size or not (size.get("height") and size.get("width")):
            processor.size = {"height": side, "width": side}
        for key in ("do_center_crop", "do_reduce_labels", "keep_aspect_ratio"):
            if getattr(processor, key, None):
                setattr(processor, key, False)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        truth = self.kind.kept(rows.features)
        chosen = rows.select_columns([self.image, *truth])
        return chosen.with_transform(Transform(self.kind, processor, config, bool(truth)))

    def for_training(self, rows: Dataset, processor: Any) -> Any:
        augment = with_places(self.augment)
        drawn_rows = rows.with_transform(transform_of(rows).of_training(augment))
        return drawn_rows if augment is None else DrawnRows(drawn_rows)

    def collator(self, processor: Any) -> Callable:
        return collate

    def training_loss(self, rows: Dataset, smoothing: float) -> Callable | None:
        if smoothing:
            raise RecipeError(
                "training.label_smoothing_factor: Trainer cannot smooth maps of labels. "
                "Leave it out."
            )
        if self.class_weights:
            classes = len(self.names(DatasetDict(train=rows)))
            return BalancedPixels(pixel_counts(rows, self.kind, classes))
        return None

    def summarizer(self, processor: Any) -> Callable:
        return self.kind.summarizer(processor)

    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        return self.kind.metrics(names)

    @property
    def surest(self) -> float | None:
        """From which score objects are shown and predicted; None for maps of classes."""
        return self.threshold if self.problem == "instance" else None

    def pictures(
        self, metrics: Any, model: Any, processor: Any, rows: Dataset
    ) -> dict[str, list[dict]]:
        """Images, true and predicted masks: the worst ones, and some of the others."""
        worst = metrics.worst[: SHOWN // 2]
        others = [row for row in range(len(rows)) if row not in worst][: SHOWN - len(worst)]
        found = {}
        for title, chosen in (("worst_images", worst), ("other_images", others)):
            part = rows.select(chosen)
            seen = found_in(part, self.image, model, processor, 1, self.surest)
            found[f"{title} (image, true, predicted)"] = [
                self._beside(row, part[number], one, self.trained_names(model.config))
                for number, (row, one) in enumerate(zip(chosen, seen, strict=True))
            ]
        return found

    def _beside(self, row: int, given: dict, found: Any, names: list[str]) -> dict[str, Any]:
        image = found.image
        true = self.kind.target(given, image.height, image.width)
        three = [image, drawn(image, true, names), drawn(image, found.target, names)]
        return picture(side_by_side(three), f"row {row + 1}", WIDE)

    def read_inputs(self, path: Path) -> Dataset:
        return read_images(path, self.image)

    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        names = self.trained_names(model.config)
        for found in found_in(rows, self.image, model, processor, size, self.surest):
            yield from records(found, names)

    def draw(
        self, rows: Dataset, model: Any, processor: Any, size: int, folder: Path
    ) -> Iterator[dict]:
        """With masks as palette PNGs or COCO's results json, and overlays."""
        names = self.trained_names(model.config)
        writer = MaskWriter(folder, names)
        for found in found_in(rows, self.image, model, processor, size, self.surest):
            writer.write(found)
            yield from records(found, names)
        writer.close()
