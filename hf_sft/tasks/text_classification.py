"""text-classification: one class per text, or per pair of texts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset, load_dataset
from pydantic import Field
from transformers import DataCollatorWithPadding

from hf_sft.errors import DataError
from hf_sft.tasks.classification import Classification

TABLES = {".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}), ".jsonl": ("json", {})}


class TextClassification(Classification):
    """Texts -> token ids, padded per batch, cut at ``max_length`` (default: the model's limit)."""

    type: Literal["text-classification"] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    text: list[str] = Field(["text"], min_length=1, max_length=2)
    max_length: int | None = Field(None, ge=2)

    def columns(self) -> dict[str, str]:
        texts = {f"task.text[{i}]": column for i, column in enumerate(self.text)}
        return texts | {"task.label": self.label}

    def input_problems(self, split: str, rows: Dataset) -> list[str]:
        return [
            f"data.{split} row {number + 1}: {column!r} is {value!r}, not a text. "
            "Correct or remove the row."
            for column in self.text
            for number, value in enumerate(rows[column])
            if not isinstance(value, str)
        ]

    def prepare(self, processor: Any, config: Any) -> None:
        """Pad with the end-of-text token where the tokenizer has no padding token."""
        if processor.pad_token_id is None:
            processor.pad_token = processor.eos_token
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = processor.pad_token_id

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        limit = min(
            self.max_length or processor.model_max_length,
            processor.model_max_length,
            getattr(config, "max_position_embeddings", None) or processor.model_max_length,
        )
        arguments = {
            "tokenizer": processor,
            "texts": self.text,
            "label": self.label,
            "limit": limit if limit < 10**9 else None,
        }
        return rows.map(
            _tokenize, batched=True, fn_kwargs=arguments, remove_columns=rows.column_names
        )

    def collator(self, processor: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def read_inputs(self, path: Path) -> Dataset:
        if path.suffix.lower() not in TABLES:
            lines = path.read_text("utf-8").splitlines()
            columns = {self.text[0]: [line for line in lines if line.strip()]}
            rows = Dataset.from_dict(columns)
        else:
            reader, options = TABLES[path.suffix.lower()]
            rows = load_dataset(reader, data_files=str(path), split="train", **options)
        missing = self.missing_columns(path.name, rows.column_names)
        problems = [line for line in missing if not line.startswith("task.label")]
        if problems := problems or self.input_problems("input", rows):
            raise DataError("\n".join(problems))
        if len(rows) == 0:
            raise DataError(f"'{path}': no texts there.")
        return rows.select_columns(self.text)

    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        for values in zip(*(rows[column] for column in self.text), strict=True):
            yield dict(zip(self.text, values, strict=True))


def _tokenize(batch: dict[str, list], tokenizer, texts, label, limit) -> dict[str, list]:
    encoded = tokenizer(*(batch[column] for column in texts), truncation=True, max_length=limit)
    if label in batch:
        encoded["labels"] = batch[label]
    return encoded
