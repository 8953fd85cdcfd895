"""text-classification: a class, labels or a number for each text, or for each pair of texts."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, List, Value
from pydantic import Field, model_validator
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from hf_sft.errors import DataError
from hf_sft.tasks import cut_texts
from hf_sft.tasks.classification import Classification
from hf_sft.tasks.long_texts import (
    AveragedWindows,
    averaged,
    each_window,
    settle_windows,
    stride_of,
    tell_windows,
    windows_of,
)
from hf_sft.tasks.pooling import Find, Pooling, pooled, reads_mean
from hf_sft.tasks.text_inputs import as_text, beginning, lines_or_table, text_problems, with_texts
from hf_sft.tasks.tokenizers import NO_LIMIT, settle


class TextClassification(Classification):
    """Texts -> token ids, padded per batch, cut at ``max_length`` (default: the model's limit).

    ``long_texts: windows`` reads all of a text: every window of ``max_length`` tokens, which shares
    ``stride`` of them with the one before, is trained with the text's label, and the answer for a
    text is the mean of its windows' logits. Metrics and ``class_weights`` count texts, the loss
    windows.
    ``add_tokens``: words of the field that get a token and an embedding of their own; a penalty
    pulls only the embeddings that came from the source.

    Keys:
        text: a list of one column, or of two for pairs.
        max_length: tokens of a text, or of a window; the source's limit by default.
        long_texts: cut, or windows: all of a text is read, and its windows' logits averaged.
        stride: tokens that windows share; a quarter of a window by default.
        add_tokens: words that get a token of their own.
        pooling: what the head reads: native, as the architecture has it (BERT: its first token), or
            mean, of all tokens; auto: the mean for a source of sentence-transformers that averages.
    """

    type: Literal["text-classification"] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    text: list[str] = Field(["text"], min_length=1, max_length=2)
    max_length: int | None = Field(None, ge=2)
    long_texts: Literal["cut", "windows"] = "cut"
    stride: int | None = Field(None, ge=0)
    add_tokens: list[str] = []
    pooling: Pooling = "auto"

    @model_validator(mode="after")
    def _windows_of_one_text(self) -> "TextClassification":
        if self.stride is not None and not self._windows:
            raise ValueError("stride is for long_texts: windows; texts are cut here")
        if self._windows and len(self.text) > 1:
            raise ValueError(
                "long_texts: windows is for one column of text; which text of a pair would be cut "
                "cannot be told. Shorten the texts, or join them in one column"
            )
        return self

    @property
    def _windows(self) -> bool:
        return self.long_texts == "windows"

    @property
    def in_order(self) -> bool:
        return self._windows

    def columns(self) -> dict[str, str]:
        texts = {f"task.text[{i}]": column for i, column in enumerate(self.text)}
        return texts | self.label_columns()

    def typed(self, rows: Dataset) -> Dataset:
        return as_text(rows, self.text)

    def input_problems(self, place: str, rows: Dataset) -> list[str]:
        return text_problems(place, rows, self.text)

    def reshaped(self, config: Any, find: Find) -> Any:
        return pooled(config, self.pooling, find)

    def settled_as(self, model: Any) -> "TextClassification":
        return self.model_copy(update={"pooling": "mean" if reads_mean(model) else "native"})

    def prepare(self, processor: Any, model: Any) -> None:
        """The tokenizer learns the model's limit, and to pad with its end-of-text token if it must.

        Both are saved with the tokenizer, so that whoever loads it cuts texts as the training did.

        Raises:
            SourceError: the tokenizer and the model do not belong together.
        """
        settle(processor, model)
        if processor.add_tokens(self.add_tokens) and len(processor) > model.config.vocab_size:
            model.resize_token_embeddings(len(processor))
        if self._windows:
            settle_windows(processor, self._limit(processor), self.stride)

    def _limit(self, processor: Any) -> int | None:
        limit = min(self.max_length or processor.model_max_length, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def _cutter(self, processor: Any) -> Callable:
        """Columns of text -> tokens, and whose they are; the same wherever texts are read."""
        limit = self._limit(processor)
        if self._windows:
            return partial(windows_of, processor, limit=limit, stride=stride_of(limit, self.stride))
        return partial(_cut, processor, limit)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        arguments = {
            "cut": self._cutter(processor),
            "texts": self.text,
            "answer": self.answer,
            "names": self.answer_names(rows),
        }
        encoded = rows.map(
            _tokenize, batched=True, fn_kwargs=arguments, remove_columns=rows.column_names
        )
        self._tell(rows, encoded, processor)
        if self.problem == "multi-label" and "labels" in encoded.column_names:
            # A column of the data that is called labels as well has left its own type behind.
            return encoded.cast_column("labels", List(Value("float32")))
        return encoded

    def _tell(self, rows: Dataset, encoded: Dataset, processor: Any) -> None:
        """How many texts are cut, or how many windows they take."""
        limit = self._limit(processor)
        if self._windows:
            tell_windows(len(rows), encoded, limit)
            return

        def whole(numbers: list[int]) -> list[int]:
            texts = rows.select(numbers)
            found = processor(*(texts[column][:] for column in self.text), verbose=False)
            return [len(ids) for ids in found["input_ids"]]

        what = "texts" if len(self.text) == 1 else "pairs"
        remedy = " With task.long_texts: windows nothing is lost." if what == "texts" else ""
        cut_texts.tell("task.max_length", what, encoded, limit, whole, remedy=remedy)

    def collator(self, processor: Any) -> Callable:
        return DataCollatorWithPadding(processor)

    def read_inputs(self, path: Path) -> Dataset:
        rows = lines_or_table(path, self.text[0])
        missing = self.missing_columns(path.name, rows.column_names)
        if missing := [line for line in missing if not line.startswith("task.label")]:
            raise DataError("\n".join(missing))
        taken = {*self.labels, *self.answer.keys} - set(self.text)
        rows = rows.remove_columns([c for c in rows.column_names if c in taken])
        rows = self.typed(with_texts(path, rows, self.text))
        if problems := self.input_problems(f"'{path.name}'", rows):
            raise DataError("\n".join(problems))
        return rows

    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        inner = super().metrics(names, processor, rows)
        if not self._windows or rows is None:
            return inner
        begin = partial(each_window, rows, self.text[0], self._cutter(processor))
        return AveragedWindows(inner, begin, processor.pad_token_id)

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        """The texts that the model was most wrong about."""
        texts = rows.select_columns(self.text)
        found = [
            {**{name: beginning(text) for name, text in texts[told["row"]].items()},
             "mistake": told["caption"]}
            for told in metrics.surprises
        ]  # fmt: skip
        return {self.answer.mistakes.replace(" ", "_"): found}

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """One record per text, also where it takes several windows."""
        if not self._windows:
            yield from super().predict(rows, model, processor, size)
            return
        cut, collate = self._cutter(processor), self.collator(processor)
        for begin in range(0, len(rows), size):
            part = rows.select(range(begin, min(begin + size, len(rows))))
            columns, owners = cut(part[self.text[0]][:])
            windows = Dataset.from_dict(columns)
            logits = [
                model(**batch.to(model.device)).logits.float()
                for batch in DataLoader(windows, size, collate_fn=collate)
            ]
            means = averaged(torch.cat(logits), owners, len(part))
            yield from self.predictions(part, means, self.trained_names(model.config))

    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        yield from map(dict, rows)


def _cut(tokenizer: Any, limit: int | None, *texts: list[str]) -> tuple[dict, range]:
    """Texts or pairs as one sequence each, its end left out where it is too long."""
    found = tokenizer(*texts, truncation=True, max_length=limit)
    return dict(found), range(len(texts[0]))


def _tokenize(batch: dict[str, list], cut, texts, answer, names) -> dict[str, list]:
    encoded, owners = cut(*(batch[column] for column in texts))
    if answer.column in batch:
        targets = answer.targets(batch[answer.column], names)
        encoded["labels"] = [targets[owner] for owner in owners]
    return encoded
