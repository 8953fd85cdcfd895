"""What translation and summarization share: a text goes in, a text is written."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field, field_validator
from torch.utils.data import DataLoader

from hf_sft.errors import DataError, listing
from hf_sft.tasks import cut_texts
from hf_sft.tasks import seq2seq_generation as writing
from hf_sft.tasks.base import Task
from hf_sft.tasks.seq2seq_collator import Seq2SeqCollator
from hf_sft.tasks.text_inputs import as_text, lines_or_table, no_classes, text_problems, with_texts
from hf_sft.tasks.tokenizers import NO_LIMIT, settle
from hf_sft.tasks.translation_column import DOT, NESTED, languages, unfolded


class Seq2Seq(Task):
    """``source`` and ``target`` texts -> token ids of an encoder-decoder that writes.

    The decoder sees its start token and the target shifted by one; positions behind a target do not
    count in the loss. The code of the target's language is forced to be the first token written.
    ``generation`` holds for evaluation and prediction, and is saved with the model, whose own head
    goes on.

    Keys:
        source, target: columns; or translation.en, a language of the column translation (a dict,
            or in a csv a dict as text).
        source_lang, target_lang: languages of that column, and the tokenizer's codes where it has
            any (NLLB deu_Latn, mBART de_DE, M2M100 de).
        prefix: before every source (T5).
        max_source_length, max_target_length: tokens; the source's limit by default.
        generation: keys of GenerationConfig: num_beams, max_new_tokens, …; greedy and as long as
            max_target_length, or 128 tokens, by default.
    """

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    in_order: ClassVar[bool] = True
    label_names: ClassVar[list[str]] = ["labels"]
    written: ClassVar[str]  # what a prediction's text is called
    source: str = "source"
    target: str = "target"
    source_lang: str | None = None
    target_lang: str | None = None
    prefix: str = ""
    max_source_length: int | None = Field(None, ge=2)
    max_target_length: int | None = Field(None, ge=2)
    generation: dict[str, Any] = {}

    @field_validator("generation")
    @classmethod
    def _known_keys(cls, given: dict[str, Any]) -> dict[str, Any]:
        if problem := writing.problem(given):
            raise ValueError(problem)
        return given

    def columns(self) -> dict[str, str]:
        return {"task.source": self.source, "task.target": self.target}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        no_classes(keep)
        data = DatasetDict(
            {split: self._flat(rows, f"data.{split}") for split, rows in data.items()}
        )
        self.refuse_missing(data)
        columns = [self.source, self.target]
        data = DatasetDict({split: as_text(rows, columns) for split, rows in data.items()})
        problems = [
            p for split, rows in data.items() for p in text_problems(f"data.{split}", rows, columns)
        ]
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _flat(self, rows: Dataset, place: str) -> Dataset:
        """The texts of a ``translation`` column in columns of their own.

        Raises:
            DataError: its languages are others than the task's.
        """
        rows = unfolded(rows, place or "inputs")
        if not (there := languages(rows)):
            return rows
        for column, code in ((self.source, self.source_lang), (self.target, self.target_lang)):
            if column not in rows.column_names and code is not None:
                found = [name for name in (code, code.split("_")[0]) if name in there]
                rows = rows.rename_column(DOT + found[0], column) if found else rows
        if place and not {self.source, self.target} <= set(rows.column_names):
            raise DataError(
                f"{place}: its column {NESTED!r} has {listing(there)}. Say which is which by "
                "task.source_lang and task.target_lang, or, where the tokenizer spells languages "
                f"otherwise, by task.source: {DOT}{there[0]} and task.target likewise."
            )
        return rows

    def prepare(self, processor: Any, model: Any) -> None:
        """Tokenizer and model agree on the longest text, the languages, and how texts are written.

        Raises:
            SourceError: they do not belong together, or do not know the languages.
        """
        settle(processor, model)
        writing.speak(processor, self.source_lang, self.target_lang)
        writing.start(processor, model, self.target_lang)
        writing.settle(model, self.generation, self.max_target_length)
        writing.hold_unsaved(model)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        writing.speak(processor, self.source_lang, self.target_lang)
        arguments = {
            "tokenizer": processor,
            "columns": (self.source, self.target),
            "prefix": self.prefix,
            "limits": [
                _limit(processor, most) for most in (self.max_source_length, self.max_target_length)
            ],
            "start": config.decoder_start_token_id,
        }
        encoded = rows.map(
            _tokenize, batched=True, fn_kwargs=arguments, remove_columns=rows.column_names
        )
        self._tell(rows, encoded, processor, arguments["limits"])
        return encoded

    def reads(self, processor: Any) -> Callable[[Sequence[str]], list[list[int]]]:
        """Sources -> the ids of each that the encoder is given, without padding."""

        def read(texts: Sequence[str]) -> list[list[int]]:
            limit = _limit(processor, self.max_source_length)
            return _sources(texts, processor, self.prefix, limit)["input_ids"]

        return read

    def _tell(self, rows: Dataset, encoded: Dataset, tokenizer: Any, limits: list) -> None:
        """How many sources and targets are cut."""

        def sources(numbers: list[int]) -> list[int]:
            texts = [self.prefix + text for text in rows.select(numbers)[self.source]]
            return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

        def targets(numbers: list[int]) -> list[int]:
            texts = rows.select(numbers)[self.target][:]
            return [len(ids) for ids in tokenizer(text_target=texts, verbose=False)["input_ids"]]

        cut_texts.tell("task.max_source_length", "sources", encoded, limits[0], sources)
        if "labels" in encoded.column_names:
            cut_texts.tell(
                "task.max_target_length", "targets", encoded, limits[1], targets, "labels",
                " Scores compare with the whole targets.",
            )  # fmt: skip

    def collator(self, processor: Any) -> Callable:
        return Seq2SeqCollator(processor.pad_token_id, processor.padding_side)

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        return {"generation": writing.used(model)}

    def read_inputs(self, path: Path) -> Dataset:
        rows = self._flat(lines_or_table(path, self.source), "")
        missing = self.missing_columns(path.name, rows.column_names)
        if missing := [line for line in missing if not line.startswith("task.target")]:
            raise DataError("\n".join(missing))
        taken = {self.target, self.written} - {self.source}
        rows = rows.remove_columns([c for c in rows.column_names if c in taken])
        rows = as_text(with_texts(path, rows, [self.source]), [self.source])
        if problems := text_problems(f"'{path.name}'", rows, [self.source]):
            raise DataError("\n".join(problems))
        return rows

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """Every row with the text that ``generate`` writes for it."""
        encoded = self.encode(rows, processor, model.config)
        loader = DataLoader(encoded, size, collate_fn=self.collator(processor))
        for number, batch in enumerate(loader):
            ids = model.generate(**{k: v.to(model.device) for k, v in batch.items()})
            texts = processor.batch_decode(ids, skip_special_tokens=True)
            part = rows.select(range(number * size, number * size + len(texts)))
            for row, text in zip(part, texts, strict=True):
                yield {**row, self.written: text}

    @abstractmethod
    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        """Scores of written texts against the whole targets of ``rows``, not what was cut."""


def _limit(processor: Any, most: int | None) -> int | None:
    limit = min(most or processor.model_max_length, processor.model_max_length)
    return limit if limit < NO_LIMIT else None


def _sources(texts: Sequence[str], tokenizer: Any, prefix: str, limit: int | None) -> Any:
    given = [prefix + text for text in texts]
    return tokenizer(given, truncation=limit is not None, max_length=limit)


def _tokenize(batch: dict[str, list], tokenizer, columns, prefix, limits, start) -> dict[str, list]:
    source, target = columns
    given = _sources(batch[source], tokenizer, prefix, limits[0])
    encoded = {key: given[key] for key in ("input_ids", "attention_mask")}
    if target in batch:
        labels = tokenizer(
            text_target=batch[target], truncation=limits[1] is not None, max_length=limits[1]
        )["input_ids"]
        encoded["labels"] = labels
        encoded["decoder_input_ids"] = [[start, *ids[:-1]] for ids in labels]
    return encoded
