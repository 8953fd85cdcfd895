"""object-detection: boxes and classes of the things in an image; DETR, RT-DETR, YOLOS, …"""

import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from PIL import Image
from pydantic import Field

from hf_sft.errors import DataError, RecipeError, SourceError
from hf_sft.tasks.augmentation import DrawnRows, Preset
from hf_sft.tasks.base import Task
from hf_sft.tasks.detection_columns import Normaliser, Objects, class_names
from hf_sft.tasks.detection_files import Drawing
from hf_sft.tasks.detection_inputs import Detectable, Padded
from hf_sft.tasks.detection_metrics import NUMBERS, StreamingBoxes, best
from hf_sft.tasks.detection_report import shown_pictures
from hf_sft.tasks.image_inputs import as_images, image_names, read_images
from hf_sft.tasks.labels import name_labels
from hf_sft.tasks.object_counts import sum_object_counts

log = logging.getLogger(__name__)
Pixels = Annotated[int, Field(ge=32, le=4096)]


class ObjectDetection(Task):
    """Images and the boxes in them, decoded and resized by the model's own image processor.

    Keys:
        image, objects: columns; each row's objects are a dict of lists.
        box, category: fields of the objects; area and iscrowd are read where they are.
        box_format: how the data write a box, in pixels.
        mend_boxes: cut boxes at the image's edge and leave out those without area, in place of an
            error.
        image_size: pixels of a square that every image is stretched to, or [shorter, longest] edge
            of one that keeps its form, for models with a pixel_mask; the source's by default.
        augment: as for images of a class; boxes move with their images.
        threshold: the score from which a prediction is told.
    """

    type: Literal["object-detection"] = "object-detection"
    auto_class: ClassVar[str] = "AutoModelForObjectDetection"
    auto_processor: ClassVar[str] = "AutoImageProcessor"
    selection_metric: ClassVar[str] = "map"
    metric_names: ClassVar[tuple[str, ...]] = NUMBERS
    in_order: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    chooses: ClassVar[bool] = False  # many queries, most of them for nothing
    locates: ClassVar[bool] = True
    image: str = "image"
    objects: str = "objects"
    box: str = "bbox"
    category: str = "category"
    box_format: Literal["xywh", "xyxy"] = "xywh"
    mend_boxes: bool = False
    image_size: Pixels | tuple[Pixels, Pixels] | None = None
    augment: Preset = "none"
    threshold: float = Field(0.5, ge=0, lt=1)

    def columns(self) -> dict[str, str]:
        return {"task.image": self.image, "task.objects": self.objects}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        data = DatasetDict({split: as_images(rows, self.image) for split, rows in data.items()})
        corners = self.box_format == "xyxy"
        form = Objects(self.image, self.objects, self.box, self.category, corners, self.mend_boxes)
        if problems := [p for s in data for p in form.form_problems(f"data.{s}", data[s])]:
            raise DataError("\n".join(problems))
        known = set(class_names(data, form, None))
        names, checked = class_names(data, form, keep), {}
        for split, rows in data.items():
            found = Normaliser(rows, form, names, known)
            objects = concatenate_datasets(list(found.parts()))
            problems += found.told(split)
            checked[split] = concatenate_datasets(
                [rows.select_columns([self.image]), objects], axis=1
            )
            if found.changes.cut or found.changes.dropped:
                log.warning(
                    "data.%s: %d boxes were cut at the edge of their image, %d that had no area "
                    "were left out.", split, found.changes.cut, found.changes.dropped
                )  # fmt: skip
        if problems:
            raise DataError("\n".join(problems))
        if not any(objects["bbox"] for objects in checked["train"]["objects"]):
            raise DataError("data.train has no object; at least one is needed.")
        return DatasetDict(checked)

    def names(self, data: DatasetDict) -> list[str]:
        return data["train"].features["objects"]["category"].feature.names

    def trained_names(self, config: Any) -> list[str]:
        return [config.id2label[i] for i in range(config.num_labels)]

    def configure(self, config: Any, names: list[str]) -> None:
        name_labels(config, names)

    def prepare(self, processor: Any, model: Any) -> None:
        """Give the processor ``image_size``; say in it whether the model takes a mask.

        Raises:
            SourceError: the processor does not know how to read the model's boxes.
        """
        if not hasattr(processor, "post_process_object_detection"):
            raise SourceError(
                f"model.name: {type(processor).__name__} cannot read boxes from a model's answer. "
                "Name a source for object detection."
            )
        sum_object_counts(model)
        if isinstance(self.image_size, int):
            processor.size = {"height": self.image_size, "width": self.image_size}
        elif self.image_size is not None:
            shortest, longest = sorted(self.image_size)
            processor.size = {"shortest_edge": shortest, "longest_edge": longest}
        if "pixel_mask" not in inspect.signature(model.forward).parameters:
            processor.model_input_names = ["pixel_values"]
            self._refuse_padding(processor, model)

    def _refuse_padding(self, processor: Any, model: Any) -> None:
        if not {"height", "width"} <= set(dict(processor.size)):
            given = self.image_size or "not given"
            raise SourceError(
                f"task.image_size: {given}, so that images keep their form "
                f"({dict(processor.size)}); but {type(model).__name__} takes no pixel_mask and "
                "would see their padding as a part of them. Give one number, the square that every "
                "image is stretched to: image_size: 512."
            )

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        columns = [c for c in (self.image, "objects") if c in rows.column_names]
        return rows.select_columns(columns).with_transform(Detectable(processor, self.image))

    def for_training(self, rows: Dataset, processor: Any) -> Any:
        if self.augment == "none":
            return rows
        return DrawnRows(rows.with_transform(Detectable(processor, self.image, self.augment)))

    def collator(self, processor: Any) -> Padded:
        return Padded("pixel_mask" in processor.model_input_names)

    def training_loss(self, rows: Dataset, smoothing: float) -> Callable | None:
        if smoothing:
            raise RecipeError(
                f"training.label_smoothing_factor: {smoothing:g} is for one class of several; a "
                "detector's loss has none. Leave it out."
            )
        return None

    def summarizer(self, processor: Any) -> Callable:
        """(images, up to 100, 6): score, label, x0, y0, x1, y1 as shares of the image."""

        def summary(outputs: Any, labels: Any) -> torch.Tensor:
            logits, boxes = [part for part in outputs if torch.is_tensor(part)][:2]
            answer = SimpleNamespace(logits=logits, pred_boxes=boxes)
            found = processor.post_process_object_detection(answer, threshold=-1.0)
            return best(
                *(torch.stack([one[k] for one in found]) for k in ("scores", "labels", "boxes"))
            )

        return summary

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingBoxes:
        return StreamingBoxes(names, rows, self.threshold)

    def pictures(
        self, metrics: Any, model: Any, processor: Any, rows: Dataset
    ) -> dict[str, list[dict]]:
        """Precision over recall, some images with their boxes, and those with most mistakes."""
        model.eval()
        names = self.trained_names(model.config)
        return shown_pictures(
            metrics, names, rows, self.image, lambda image: self.found([image], model, processor)[0]
        )

    def read_inputs(self, path: Path) -> Dataset:
        return read_images(path, self.image)

    @torch.no_grad()
    def found(self, images: list[Image.Image], model: Any, processor: Any) -> list[dict]:
        """``scores``, ``labels`` and ``boxes`` (x0, y0, x1, y1 in pixels) of each decoded image."""
        encoded = Detectable(processor, self.image)({self.image: images})
        rows = [
            dict(zip(encoded, values, strict=True))
            for values in zip(*encoded.values(), strict=True)
        ]
        batch = {k: v.to(model.device) for k, v in self.collator(processor)(rows).items()}
        sizes = torch.tensor([image.size[::-1] for image in images], device=model.device)
        return processor.post_process_object_detection(
            model(**batch), threshold=self.threshold, target_sizes=sizes
        )

    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """One record per thing: image, label, score, x, y, w, h in pixels.

        An image in which nothing was found has one record without them.
        """
        for name, _, found in self._looked(rows, model, processor, size):
            yield from records(name, found, self.trained_names(model.config))

    def draw(
        self, rows: Dataset, model: Any, processor: Any, size: int, folder: Path
    ) -> Iterator[dict]:
        names = self.trained_names(model.config)
        drawing = Drawing(folder, names, image_names(rows, self.image))
        for name, image, found in self._looked(rows, model, processor, size):
            drawing.add(image, found)
            yield from records(name, found, names)
        drawing.close()

    def _looked(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[tuple]:
        """(name, decoded image, what was found) of every row."""
        names = image_names(rows, self.image)
        for start in range(0, len(rows), size):
            images = [image.convert("RGB") for image in rows[start : start + size][self.image]]
            found = self.found(images, model, processor)
            yield from zip(names[start : start + size], images, found, strict=True)


def records(name: str | None, found: dict, names: list[str]) -> Iterator[dict]:
    """What was found in one image, best first; one empty record for nothing."""
    order = found["scores"].argsort(descending=True, stable=True)
    nothing = dict.fromkeys(("label", "score", "x", "y", "w", "h"))
    if not len(order):
        yield {"image": name, **nothing}
    for index in order.tolist():
        x0, y0, x1, y1 = found["boxes"][index].tolist()
        yield {
            "image": name,
            "label": names[int(found["labels"][index])],
            "score": float(found["scores"][index]),
            **{"x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0},
        }
