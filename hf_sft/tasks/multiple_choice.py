"""multiple-choice: which of several endings, or answers, belongs to a text (SWAG)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from hf_sft.errors import DataError
from hf_sft.table_files import read_table
from hf_sft.tasks import cut_texts
from hf_sft.tasks.base import Task
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.multiple_choice_columns import columns_of, flat, numbered, spread
from hf_sft.tasks.multiple_choice_metrics import StreamingChoices
from hf_sft.tasks.text_inputs import as_text, beginning
from hf_sft.tasks.tokenizers import NO_LIMIT, settle

FOUND = ("choice", "answer", "probability", "probabilities")  # columns of the predictions


class MultipleChoice(Task):
    """Each ending with its context is one sequence; one score for each, softmax over the endings.

    ``[CLS] context [SEP] question ending [SEP]``: ``question`` is the start that all endings go on
    from (SWAG's ``sent2``), or a question; null where there is none. ``endings``: columns, or one
    of lists of equal length. ``label``: the number of the right ending (from 0, or 1 to n where
    all of these occur), its letter, or its text. Zellers et al. 2018, "SWAG" (arXiv 1808.05326).

    Keys:
        context: a column.
        question: a column with the start of every ending, or null.
        endings: two columns or more, or one column of lists.
        label: a column with the right one's number, letter or text.
        max_length: tokens; the source's limit by default.
    """

    type: Literal["multiple-choice"] = "multiple-choice"
    auto_class: ClassVar[str] = "AutoModelForMultipleChoice"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    context: str = "sent1"
    question: str | None = "sent2"
    endings: Annotated[list[str], Field(min_length=2)] | str = [
        "ending0", "ending1", "ending2", "ending3"
    ]  # fmt: skip
    label: str = "label"
    max_length: int | None = Field(None, ge=4)

    def columns(self) -> dict[str, str]:
        texts = {"task.context": self.context, "task.question": self.question}
        if isinstance(self.endings, str):
            texts |= {"task.endings": self.endings}
        else:
            texts |= {f"task.endings[{i}]": column for i, column in enumerate(self.endings)}
        return {k: v for k, v in texts.items() if v is not None} | {"task.label": self.label}

    def texts(self, found: Sequence[str]) -> list[str]:
        """The columns that hold text, among those of rows that were read."""
        first = [self.context] if self.question is None else [self.context, self.question]
        return [*first, *columns_of(self.endings, found)]

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        names = [*self.columns().values()]
        data = DatasetDict({split: flat(rows, names) for split, rows in data.items()})
        self.refuse_missing(data)
        problems = []
        if keep is not None:
            problems.append("data.keep_labels: this task has no classes; leave the key out.")
        data = DatasetDict({s: self._typed(rows, f"data.{s}") for s, rows in data.items()})
        endings = columns_of(self.endings, data["train"].column_names)
        for split, rows in data.items():
            if (other := columns_of(self.endings, rows.column_names)) != endings:
                problems.append(
                    f"data.{split}: {self.endings!r} has {len(other)} texts in each row, in train "
                    f"{len(endings)}. As many are wanted."
                )
        if problems:
            raise DataError("\n".join(problems))
        data = numbered(data, self.label, endings)
        for split, rows in data.items():
            problems += first_few(f"data.{split}", self._text_problems(rows))
            problems += first_few(f"data.{split}", self._label_problems(rows, len(endings)))
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _typed(self, rows: Dataset, place: str) -> Dataset:
        rows = spread(rows, self.endings, place)
        return as_text(rows, self.texts(rows.column_names))  # an answer may be the number 7

    def _text_problems(self, rows: Dataset) -> list[str]:
        return [
            f"row {number}: {column!r} is {value!r}, not a text. Correct or remove the row."
            for column in self.texts(rows.column_names)
            for number, value in enumerate(rows[column], 1)
            if not isinstance(value, str)
        ]

    def _label_problems(self, rows: Dataset, count: int) -> list[str]:
        return [
            f"row {number}: {self.label!r} is {value!r}, not the number of an ending, 0 to "
            f"{count - 1}, nor its letter or its text. Correct the row; a split without answers "
            "(-1) is left out of data.splits."
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

        count = len(columns_of(self.endings, rows.column_names))

        def whole(numbers: list[int]) -> list[int]:
            found = processor(*_pairs(rows.select(numbers)[:], self), verbose=False)["input_ids"]
            return [max(map(len, found[i : i + count])) for i in range(0, len(found), count)]

        cut_texts.tell("task.max_length", "rows", encoded, self._limit(processor), whole)
        return encoded

    def _limit(self, processor: Any) -> int | None:
        limit = min(self.max_length or processor.model_max_length, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def collator(self, processor: Any) -> Callable:
        return Collator(processor)

    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        given = isinstance(self.endings, list)
        return StreamingChoices(columns_of(self.endings, [] if given else rows.column_names))

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        """The rows that the model was most wrong about."""
        found, endings = [], columns_of(self.endings, rows.column_names)
        for told in metrics.surprises:
            (right, chosen, share), row = told["caption"], rows[told["row"]]
            given = [self.context] + ([] if self.question is None else [self.question])
            shown = {name: beginning(row[name]) for name in given}
            answers = {"wanted": row[endings[right]], "chosen": row[endings[chosen]]}
            found.append({**shown, **answers, "probability": round(share, 2)})
        return {"most_confident_mistakes": found}

    def read_inputs(self, path: Path) -> Dataset:
        rows = flat(read_table(path, ""), [*self.columns().values()])
        missing = self.missing_columns(f"'{path.name}'", rows.column_names)
        if missing := [line for line in missing if not line.startswith("task.label")]:
            raise DataError("\n".join(missing))
        rows = self._typed(rows, f"'{path.name}'")
        taken = {self.label, *FOUND} - set(self.texts(rows.column_names))
        rows = rows.remove_columns([c for c in rows.column_names if c in taken])
        if problems := first_few(f"'{path.name}'", self._text_problems(rows)):
            raise DataError("\n".join(problems))
        if len(rows) == 0:
            raise DataError(f"'{path}': no rows there.")
        return rows

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """The rows with the number of the ending, its text, and the probability of each."""
        encoded, number = self.encode(rows, processor, model.config), 0
        endings = columns_of(self.endings, rows.column_names)
        for batch in DataLoader(encoded, size, collate_fn=self.collator(processor)):
            logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            for shares in logits.float().softmax(-1).tolist():
                given = rows[number]
                best = max(range(len(shares)), key=shares.__getitem__)
                yield {
                    **given,
                    "choice": best,
                    "answer": given[endings[best]],
                    "probability": shares[best],
                    "probabilities": dict(zip(endings, shares, strict=True)),
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


def _pairs(batch: dict[str, list], task: MultipleChoice) -> tuple[list[str], list[str]]:
    """Context, and question with ending, of every ending of every row."""
    starts = batch[task.question] if task.question else [""] * len(batch[task.context])
    endings = columns_of(task.endings, list(batch))
    pairs = [
        (context, f"{start} {batch[ending][row]}".strip())
        for row, (context, start) in enumerate(zip(batch[task.context], starts, strict=True))
        for ending in endings
    ]
    first, second = map(list, zip(*pairs, strict=True))
    return first, second


def _encode(batch: dict[str, list], task: MultipleChoice, tokenizer: Any) -> dict[str, list]:
    count = len(columns_of(task.endings, list(batch)))
    found = tokenizer(*_pairs(batch, task), truncation=True, max_length=task._limit(tokenizer))
    encoded = {
        name: [values[i : i + count] for i in range(0, len(values), count)]
        for name, values in found.items()
    }
    if task.label in batch:
        encoded["labels"] = batch[task.label]
    return encoded
