"""token-classification: a tag for every word, for entities (NER, chunks) or parts of speech."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset, DatasetDict, List
from pydantic import Field
from transformers import DataCollatorForTokenClassification

from hf_sft.errors import DataError
from hf_sft.tasks import tag_schemes
from hf_sft.tasks.base import Task
from hf_sft.tasks.cut_texts import record
from hf_sft.tasks.labels import first_few, name_labels
from hf_sft.tasks.tag_columns import TagColumns, sentences
from hf_sft.tasks.tag_schemes import Scheme
from hf_sft.tasks.tagging import answers, entities, joined, mistakes, word_tags
from hf_sft.tasks.text_inputs import as_text, lines_or_table, text_problems, with_texts
from hf_sft.tasks.token_classification_metrics import SCALARS, StreamingTags, first_answers
from hf_sft.tasks.tokenizers import NO_LIMIT, settle
from hf_sft.tasks.word_windows import IGNORED, settle_words, text_windows, word_windows

TEXT = "text"  # the column of inputs that are no lists of words
ANSWERS = ("entities", "words")  # columns of the predictions
LOOKED_AT, SHOWN = 50, 8  # sentences of an evaluated split, those of them that the report shows

log = logging.getLogger(__name__)


class TokenClassification(Task):
    """Lists of words -> token ids, the first token of each word with the word's tag.

    Sentences longer than ``max_length`` (default: the model's limit) are read in windows that
    overlap, so that every word counts once.

    Keys:
        tokens, tags: columns of lists, one tag for each word.
        scheme: how tags spell entities, or none: parts of speech; seen from the tags by default.
        repair: an I-X after O begins an entity, in place of an error.
        tag_names: of tags that are numbers without names.
        max_length: tokens of a window; the source's limit by default.
    """

    type: Literal["token-classification"] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "f1"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    tokens: str = "tokens"
    tags: str = "tags"
    scheme: Scheme | None = None
    repair: bool = False
    tag_names: list[str] | None = Field(None, min_length=2)
    max_length: int | None = Field(None, ge=8)

    def columns(self) -> dict[str, str]:
        return {"task.tokens": self.tokens, "task.tags": self.tags}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        found = TagColumns(self.tokens, self.tags, self.scheme, self.tag_names)
        return found.encoded(data, self.repair, keep)

    def names(self, data: DatasetDict) -> list[str]:
        return data["train"].features[self.tags].feature.names

    def trained_names(self, config: Any) -> list[str]:
        return [config.id2label[i] for i in range(config.num_labels)]

    def scheme_of(self, names: list[str]) -> Scheme:
        """How these tags spell entities."""
        return self.scheme or tag_schemes.detect(names)

    def configure(self, config: Any, names: list[str]) -> None:
        name_labels(config, names)

    def prepare(self, processor: Any, model: Any) -> None:
        settle(processor, model)
        settle_words(processor)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        encoded = rows.map(
            self._windows,
            batched=True,
            fn_kwargs={"tokenizer": processor},
            remove_columns=rows.column_names,
        )
        record("sentences", len(rows), 0, self.limit(processor), 0, windows=len(encoded))
        if more := len(encoded) - len(rows):
            log.warning(
                f"{more} windows more than the {len(rows)} sentences: some are longer than "
                f"{self.limit(processor)} tokens. Every word counts once."
            )
        return encoded

    def limit(self, processor: Any) -> int | None:
        """How many tokens a window may have; None for a model without a limit."""
        limit = min(self.max_length or processor.model_max_length, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def _windows(self, batch: dict[str, list], tokenizer: Any) -> dict[str, list]:
        """Windows with ``labels`` where the batch has tags."""
        if self.tokens not in batch:
            return text_windows(tokenizer, batch[TEXT], self.limit(tokenizer))[0].columns
        found = word_windows(tokenizer, list(sentences(batch, self.tokens)), self.limit(tokenizer))
        if self.tags in batch:
            found.columns["labels"] = [
                [IGNORED if word == IGNORED else batch[self.tags][sentence][word] for word in words]
                for sentence, words in zip(found.sentences, found.words, strict=True)
            ]
        return found.columns

    def collator(self, processor: Any) -> Callable:
        return DataCollatorForTokenClassification(processor)

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingTags:
        return StreamingTags(names, self.scheme_of(names), rows, self.tags)

    def summary(self, logits: Any, labels: Any) -> Any:
        return first_answers(logits[0] if isinstance(logits, tuple) else logits)

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        """The first sentences in which something was missed, or said that is not there."""
        few = rows.select(range(min(LOOKED_AT, len(rows))))
        names = self.trained_names(model.config)
        found = self.predict(few.remove_columns(self.tags), model, processor, LOOKED_AT)
        pairs = zip(few[self.tokens], few[self.tags], found, strict=True)
        shown = (
            mistakes(words, [names[tag] for tag in tags], record["tags"], self.scheme_of(names))
            for words, tags, record in pairs
        )
        wrong = [mistake for mistake in shown if mistake is not None]
        return {"sentences_with_mistakes": wrong[:SHOWN]}

    def read_inputs(self, path: Path) -> Dataset:
        """Lines of text, or a table with words (lists, or parted by spaces) or with texts."""
        rows = lines_or_table(path, TEXT)
        taken = {self.tags, *ANSWERS} - {self.tokens, TEXT}
        rows = rows.remove_columns([name for name in rows.column_names if name in taken])
        if self.tokens not in rows.column_names and TEXT in rows.column_names:
            rows = as_text(with_texts(path, rows, [TEXT]), [TEXT])
            problems = text_problems(f"'{path.name}'", rows, [TEXT])
        else:
            missing = self.missing_columns(path.name, rows.column_names)
            problems = [line for line in missing if not line.startswith("task.tags")]
            problems = problems or self._word_problems(path.name, rows)
        if problems:
            raise DataError("\n".join(problems))
        return rows

    def _word_problems(self, name: str, rows: Dataset) -> list[str]:
        if not isinstance(rows.features[self.tokens], List):
            return text_problems(f"'{name}'", rows, [self.tokens])
        return first_few(
            f"'{name}'",
            [
                f"row {row}: {self.tokens!r} is {words!r}; a list of words is wanted."
                for row, words in enumerate(rows[self.tokens], 1)
                if not words or not all(isinstance(word, str) for word in words)
            ],
        )

    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """What was given, the entities or else the words; of given words also the tags."""
        names, limit = self.trained_names(model.config), self.limit(processor)
        scheme, split = self.scheme_of(names), self.tokens in rows.column_names
        for start in range(0, len(rows), size):
            part = rows.select(range(start, min(start + size, len(rows))))
            if split:
                words = list(sentences(part, self.tokens))
                texts, places = zip(*map(joined, words), strict=True)
                windows = word_windows(processor, words, limit)
            else:
                texts = part[TEXT][:]
                windows, places = text_windows(processor, texts, limit)
            said = answers(windows, len(part), model, self.collator(processor), size)
            for given, text, where, tags in zip(part, texts, places, said, strict=True):
                more = {TEXT: text, "tags": word_tags(len(where), tags, names)} if split else {}
                key = "words" if scheme == "none" else "entities"
                yield {**given, **more, key: list(entities(text, where, tags, names, scheme))}
