"""image-classification: a class, labels or a number for each image; Transformers and timm."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset, Image, Value
from pydantic import Field, model_validator
from transformers import default_data_collator

from hf_sft.errors import DataError
from hf_sft.images import ENDINGS, each, problem_of
from hf_sft.table_files import beside, is_table, read_table
from hf_sft.tasks.answer import Answer
from hf_sft.tasks.augmentation import DrawnRows, Preset, alone
from hf_sft.tasks.classification import Classification
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.mixing import CUTMIX, MIXUP, NUMBER, Mixing
from hf_sft.tasks.pictures import picture


class ImageClassification(Classification):
    """Images -> ``pixel_values`` by the model's own image processor, decoded when they are used.

    The saved model carries ``image_size``, so that ``pipeline`` preprocesses the same way.
    ``augment``, ``mixup`` and ``cutmix`` are for rows of train alone.

    Keys:
        image: a column of images, or of their files' names.
        image_size: pixels of the square that the model sees; the source's by default.
        augment: basic: a random part of half the area or more, and the mirror image half of the
            time; strong: TrivialAugment and erasing as well. Digits and letters want none.
        mixup, cutmix: α of each, for classes and labels; off by default.
    """

    type: Literal["image-classification"] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    auto_processor: ClassVar[str] = "AutoImageProcessor"
    image: str = "image"
    image_size: int | None = Field(None, ge=16, le=4096)
    augment: Preset = "none"
    mixup: float | None = Field(None, gt=0)
    cutmix: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _numbers_are_not_mixed(self) -> "ImageClassification":
        if self.soft and self.problem == "regression":
            raise ValueError("mixup and cutmix are for classes; this is regression. Leave them out")
        return self

    @property
    def soft(self) -> bool:
        return self.mixup is not None or self.cutmix is not None

    @property
    def papers(self) -> list[str]:
        return [paper for alpha, paper in ((self.mixup, MIXUP), (self.cutmix, CUTMIX)) if alpha]

    def columns(self) -> dict[str, str]:
        return {"task.image": self.image, **self.label_columns()}

    def typed(self, rows: Dataset) -> Dataset:
        """Paths and bytes count as images too."""
        kind = rows.features[self.image]
        stored = isinstance(kind, dict) and kind.keys() == {"bytes", "path"}
        if stored or (isinstance(kind, Value) and kind.dtype in ("string", "binary")):
            return rows.cast_column(self.image, Image())
        return rows

    def input_problems(self, place: str, rows: Dataset) -> list[str]:
        if not isinstance(kind := rows.features[self.image], Image):
            return [f"{place}: {self.image!r} holds no images but {kind}. Correct task.image."]
        undecoded = rows.cast_column(self.image, Image(decode=False))[self.image]
        problems = enumerate(each(problem_of, undecoded), 1)
        return first_few(place, [f"row {i}: {line}" for i, line in problems if line])

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
        columns = [c for c in (self.image, self.answer.column) if c in rows.column_names]
        return rows.select_columns(columns).with_transform(self._transform(rows, processor))

    def for_training(self, rows: Dataset, processor: Any) -> Any:
        augment = alone(self.augment)
        if augment is None and not self.soft:
            return rows
        transform = self._transform(rows, processor, augment, self.soft)
        return DrawnRows(rows.with_transform(transform), NUMBER if self.soft else None)

    def _transform(self, rows: Dataset, processor: Any, *more: Any) -> "_Transform":
        return _Transform(processor, self.image, self.answer, self.answer_names(rows), *more)

    def collator(self, processor: Any) -> Callable:
        return Mixing(self.mixup, self.cutmix) if self.soft else default_data_collator

    def pictures(
        self, metrics: Any, model: Any, processor: Any, rows: Dataset
    ) -> dict[str, list[dict]]:
        """The images that the model was most wrong about."""
        found = [
            picture(rows[told["row"]][self.image], told["caption"]) for told in metrics.surprises
        ]
        return {self.answer.mistakes: found}

    def read_inputs(self, path: Path) -> Dataset:
        """Image files, or the column of a table that names them."""
        if is_table(path):
            rows = beside(read_table(path, ""), path.parent)
            if missing := self.missing_columns(path.name, rows.column_names):
                raise DataError("\n".join(line for line in missing if "task.image" in line))
            rows = self.typed(rows.select_columns([self.image]))
        else:
            rows = self._files(path)
        if problems := self.input_problems(f"'{path}'", rows):
            raise DataError("\n".join(problems))
        return rows

    def _files(self, path: Path) -> Dataset:
        inside = path.rglob("[!.]*") if path.is_dir() else [path]  # not ._photo.jpg
        files = sorted(str(p) for p in inside if p.suffix.lower() in ENDINGS and p.is_file())
        if not files:
            raise DataError(f"'{path}': no images there. Give an image file or a folder of images.")
        return Dataset.from_dict({self.image: files}).cast_column(self.image, Image())

    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        for image in rows.cast_column(self.image, Image(decode=False))[self.image]:
            yield {"image": image["path"]}


class _Transform:
    """A batch of rows -> pixel_values and labels; a named class, so that datasets can hash it.

    ``names``: of the model's outputs; none where there are no labels. ``soft``: a class becomes a
    distribution over them.
    """

    def __init__(
        self,
        processor: Any,
        image: str,
        answer: Answer,
        names: list[str],
        augment: Callable | None = None,
        soft: bool = False,
    ):
        self.processor, self.image, self.answer, self.names = processor, image, answer, names
        self.augment, self.targets = augment, answer.soft_targets if soft else answer.targets

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[self.image]]
        if self.augment is not None:
            images = [self.augment(image) for image in images]
        encoded = {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}
        if self.names:
            encoded["labels"] = self.targets(batch[self.answer.column], self.names)
        return encoded
