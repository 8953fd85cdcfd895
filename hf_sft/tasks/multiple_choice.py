"""multiple-choice: which of several endings, or answers, belongs to a text (SWAG)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value
from pydantic import Field
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from hf_sft.errors import DataError
from hf_sft.table_files import read_table
from hf_sft.tasks import cut_texts
from hf_sft.tasks.base import Task
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.tokenizers import NO_LIMIT, settle

FOUND = ("choice", "answer", "probability", "probabilities")  # columns of the predictions


class MultipleChoice(Task):
    """Each ending with its context is one sequence; one score for each, softmax over the endings.

    ``[CLS] context [SEP] question ending [SEP]``: ``question`` is the start that all endings go on
    from (SWAG's ``sent2``), or a question; null where there is none. ``label``: the number of the
    right ending, from 0. Zellers et al. 2018, "SWAG" (arXiv 1808.05326).
    """

    type: Literal["multiple-choice"] = "multiple-choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    context: str = "sent1"
    question: str | None = "sent2"
    endings: list[str] = Field(["ending0", "ending1", "ending2", "ending3"], min_length=2)
    label: str = "label"
    max_length: int | None = Field(None, ge=4)

    def columns(self) -> dict[str, str]:
        texts = {"task.context": self.context, "task.question": self.question}
        texts |= {f"task.endings[{i}]": column for i, column in enumerate(self.endings)}
        return {k: v for k, v in texts.items() if v is not None} | {"task.label": self.label}

    @property
    def texts(self) -> list[str]:
        """The columns that hold text."""
        return [column for key, column in self.columns().items() if key != "task.label"]

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        problems = []
        if keep is not None:
            problems.append("data.keep_labels: this task has no classes; leave the key out.")
        data = DatasetDict({split: self._typed(rows) for split, rows in data.items()})
        for split, rows in data.items():
            problems += first_few(f"data.{split}", self._text_problems(rows))
            problems += first_few(f"data.{split}", self._label_problems(rows))
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _typed(self, rows: Dataset) -> Dataset:
        for column in self.texts:
            if getattr(rows.features[column], "dtype", "").startswith(("int", "float", "bool")):
                rows = rows.cast_column(column, Value("string"))  # an answer may be the number 7
        if isinstance(rows.features.get(self.label), ClassLabel):
            rows = rows.cast_column(self.label, Value("int64"))
        return rows

    def _text_problems(self, rows: Dataset) -> list[str]:
        return [
            f"row {number}: {column!r} is {value!r}, not a text. Correct or remove the row."
            for column in self.texts
            for number, value in enumerate(rows[column], 1)
            if not isinstance(value, str)
        ]

    def _label_problems(self, rows: Dataset) -> list[str]:
        count = len(self.endings)
        return [
            f"row {number}: {self.label!r} is {value!r}, not the number of an ending, 0 to "
            f"{count - 1}. Correct the row; a split without answers (-1) is left out of "
            "data.splits."
            for number, value in enumerate(rows[self.label], 1)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count
        ]

    def prepare(self, processor: Any, model: Any) -> None:
        settle(processor, model)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        """``input_ids`` and the like: one list of (endings) lists per row."""
        settings = {"task": self, "tokenizer": processor}
        encoded = rows.map(
            _encode, batched=True, fn_kwargs=settings, remove_columns=rows.column_names
        )

        def whole(numbers: list[int]) -> list[int]:
            found = processor(*_pairs(rows.select(numbers)[:], self), verbose=False)["input_ids"]
            count = len(self.endings)
            return [max(map(len, found[i : i + count])) for i in range(0, len(found), count)]

        cut_texts.tell("task.max_length", "rows", encoded, self._limit(processor), whole)
        return encoded

    def _limit(self, processor: Any) -> int | None:
        limit = min(self.max_length or processor.model_max_length, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def collator(self, processor: Any) -> Callable:
        return Collator(processor)

    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        return StreamingChoices(self.endings)

    def read_inputs(self, path: Path) -> Dataset:
        rows = read_table(path, "")
        missing = self.missing_columns(f"'{path.name}'", rows.column_names)
        if missing := [line for line in missing if not line.startswith("task.label")]:
            raise DataError("\n".join(missing))
        taken = {self.label, *FOUND} - set(self.texts)
        rows = self._typed(rows.remove_columns([c for c in rows.column_names if c in taken]))
        if problems := first_few(f"'{path.name}'", self._text_problems(rows)):
            raise DataError("\n".join(problems))
        if len(rows) == 0:
            raise DataError(f"'{path}': no rows there.")
        return rows

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """The rows with the number of the ending, its text, and the probability of each."""
        encoded, number = self.encode(rows, processor, model.config), 0
        for batch in DataLoader(encoded, size, collate_fn=self.collator(processor)):
            logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            for shares in logits.float().softmax(-1).tolist():
                given = rows[number]
                best = max(range(len(shares)), key=shares.__getitem__)
                yield {
                    **given,
                    "choice": best,
                    "answer": given[self.endings[best]],
                    "probability": shares[best],
                    "probabilities": dict(zip(self.endings, shares, strict=True)),
                }
                number += 1


class Collator:
    """Rows of (endings) sequences -> tensors (rows, endings, tokens), padded to one length.

    transformers 5.24's DataCollatorForMultipleChoice does the same, but wants labels.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> BatchEncoding:
        names = [name for name in rows[0] if name != "labels"]
        count = len(rows[0]["input_ids"])
        flat = [{name: row[name][i] for name in names} for row in rows for i in range(count)]
        batch = self.tokenizer.pad(flat, return_tensors="pt")
        for name in names:
            batch[name] = batch[name].view(len(rows), count, -1)
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


class StreamingChoices:
    """Trainer's ``compute_metrics``: counts alone are kept.

    ``tables["endings"]``: by the place of the right ending, how often it was chosen; a model that
    prefers one place whatever stands there shows in ``chosen``.
    """

    def __init__(self, endings: list[str]):
        self.endings = endings
        self.tables: dict[str, Any] = {}
        self.counts = np.zeros((len(endings), len(endings)), dtype=np.int64)  # right × chosen

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of logits (rows, endings) and labels (rows,)."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        logits = torch.as_tensor(logits).float()
        if not logits.isfinite().all():
            raise DataError(
                "The model's outputs are not finite: training has diverged. Lower "
                "training.learning_rate and start anew with --overwrite."
            )
        right = torch.as_tensor(batch.label_ids).cpu().numpy()
        np.add.at(self.counts, (right, logits.argmax(-1).cpu().numpy()), 1)
        if not compute_result:
            return {}
        counts, self.counts = self.counts, np.zeros_like(self.counts)
        self.tables = {
            "endings": [
                {
                    "ending": name,
                    "right": int(counts[i].sum()),
                    "chosen": int(counts[:, i].sum()),
                    "accuracy": float(counts[i, i] / counts[i].sum()) if counts[i].sum() else None,
                }
                for i, name in enumerate(self.endings)
            ]
        }
        return {"accuracy": float(counts.trace() / counts.sum())}


def _pairs(batch: dict[str, list], task: MultipleChoice) -> tuple[list[str], list[str]]:
    """Context, and question with ending, of every ending of every row."""
    starts = batch[task.question] if task.question else [""] * len(batch[task.context])
    pairs = [
        (context, f"{start} {batch[ending][row]}".strip())
        for row, (context, start) in enumerate(zip(batch[task.context], starts, strict=True))
        for ending in task.endings
    ]
    first, second = map(list, zip(*pairs, strict=True))
    return first, second


def _encode(batch: dict[str, list], task: MultipleChoice, tokenizer: Any) -> dict[str, list]:
    count = len(task.endings)
    found = tokenizer(*_pairs(batch, task), truncation=True, max_length=task._limit(tokenizer))
    encoded = {
        name: [values[i : i + count] for i in range(0, len(values), count)]
        for name, values in found.items()
    }
    if task.label in batch:
        encoded["labels"] = batch[task.label]
    return encoded
