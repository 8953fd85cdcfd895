"""image-classification: one class per image, for Transformers and timm models."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset, Image, Value
from PIL import Image as Picture
from pydantic import Field
from transformers import default_data_collator

from hf_sft.errors import DataError
from hf_sft.tasks.classification import Classification
from hf_sft.tasks.labels import first_few

ENDINGS = set(Picture.registered_extensions())


class ImageClassification(Classification):
    """Images -> ``pixel_values`` by the model's own image processor, decoded when they are used.

    ``image_size`` (pixels, square) overrides the size the source was trained with; the saved model
    carries it, so that ``pipeline`` preprocesses the same way.
    """

    type: Literal["image-classification"] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    auto_processor: ClassVar[str] = "AutoImageProcessor"
    image: str = "image"
    image_size: int | None = Field(None, ge=16, le=4096)

    def columns(self) -> dict[str, str]:
        return {"task.image": self.image, "task.label": self.label}

    def typed(self, rows: Dataset) -> Dataset:
        """Paths and bytes count as images too."""
        kind = rows.features[self.image]
        if isinstance(kind, Value) and kind.dtype in ("string", "binary"):
            return rows.cast_column(self.image, Image())
        return rows

    def input_problems(self, place: str, rows: Dataset) -> list[str]:
        if not isinstance(kind := rows.features[self.image], Image):
            return [f"{place}: {self.image!r} holds no images but {kind}. Correct task.image."]
        undecoded = rows.cast_column(self.image, Image(decode=False))[self.image]
        with ThreadPoolExecutor() as pool:
            problems = pool.map(_problem, undecoded)
        return first_few(place, [f"row {i}: {line}" for i, line in enumerate(problems, 1) if line])

    def prepare(self, processor: Any, model: Any) -> None:
        """Give the processor ``image_size``; a timm model keeps it in its config."""
        if self.image_size is None:
            return
        if (pretrained := getattr(model.config, "pretrained_cfg", None)) is not None:
            pretrained["input_size"] = [pretrained["input_size"][0], *[self.image_size] * 2]
            processor.__init__(pretrained, architecture=model.config.architecture)
            return
        for sizes in (getattr(processor, "size", None), getattr(processor, "crop_size", None)):
            for side in ("height", "width", "shortest_edge"):
                if sizes and side in sizes:
                    sizes[side] = self.image_size

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        columns = [c for c in (self.image, self.label) if c in rows.column_names]
        return rows.select_columns(columns).with_transform(
            _Transform(processor, self.image, self.label)
        )

    def collator(self, processor: Any) -> Callable:
        return default_data_collator

    def read_inputs(self, path: Path) -> Dataset:
        inside = path.rglob("[!.]*") if path.is_dir() else [path]  # not ._photo.jpg
        files = sorted(str(p) for p in inside if p.suffix.lower() in ENDINGS and p.is_file())
        if not files:
            raise DataError(f"'{path}': no images there. Give an image file or a folder of images.")
        rows = Dataset.from_dict({self.image: files}).cast_column(self.image, Image())
        if problems := self.input_problems(f"'{path}'", rows):
            raise DataError("\n".join(problems))
        return rows

    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        for image in rows.cast_column(self.image, Image(decode=False))[self.image]:
            yield {"image": image["path"]}


class _Transform:
    """A batch of rows -> pixel_values and labels; a named class, so that datasets can hash it."""

    def __init__(self, processor: Any, image: str, label: str):
        self.processor, self.image, self.label = processor, image, label

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[self.image]]
        encoded = {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        if self.label in batch:
            encoded["labels"] = batch[self.label]
        return encoded


def _problem(image: dict | None) -> str | None:
    """Why an image cannot be decoded, with its path; None for a good one."""
    if image is None:
        return "there is no image."
    name = image["path"] or "(bytes in the data)"
    try:
        source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        with Picture.open(source) as picture:
            picture.load()
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them into
        return f"'{name}' cannot be decoded ({error}). Replace or remove it."
    return None
