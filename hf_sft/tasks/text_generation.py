"""text-generation: supervised fine-tuning of causal language models, on what they should answer."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field, model_validator

from hf_sft.errors import DataError, SourceError
from hf_sft.tasks import chat
from hf_sft.tasks.base import Task
from hf_sft.tasks.cut_texts import record
from hf_sft.tasks.generation import continued, settle_answers
from hf_sft.tasks.generation_scores import Score, answered
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.language_collator import LanguageCollator
from hf_sft.tasks.language_metrics import SCALARS, StreamingLanguage, token_sums
from hf_sft.tasks.packing import packed, refuse_leak
from hf_sft.tasks.text_generation_encoding import encode_row, prompt_ids
from hf_sft.tasks.text_inputs import as_text, empty_texts, lines_or_table, no_classes, text_problems
from hf_sft.tasks.tokenizers import NO_LIMIT, settle

log = logging.getLogger(__name__)

UNASKED = ("task.completion", "task.input")  # columns that predict may do without


class TextGeneration(Task):
    """``prompt`` and ``completion``, chat ``messages`` or plain ``text`` -> tokens to predict.

    loss = Σ_t −log p(x_t | x_<t) / T over the T tokens of completions, of the assistant's turns,
    or of whole texts; every other label is -100. A completion ends with the tokenizer's
    end-of-text token; an example that ``max_length`` robs of all of it is left out, and told.

    Keys:
        prompt, completion: columns of one form of data.
        messages: a column of turns, the second form: {role, content}, or ShareGPT's {from, value}.
        text: a column of whole texts, the third form.
        input: a column that stands below the prompt, after a blank line (Alpaca's).
        chat_template: Jinja; the tokenizer's by default.
        max_length: tokens of an example; the source's limit by default.
        packing: several examples per row, none of which sees another (`packing.refuse_leak`).
        generate: how many rows of an evaluated split are answered in the report, greedily.
        scores, max_new_tokens: of those answers.

    Example: {type: text-generation, prompt: question, completion: answer}
    """

    type: Literal["text-generation"] = "text-generation"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    selection_metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    label_names: ClassVar[list[str]] = ["labels"]
    prompt: str | None = None
    input: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    chat_template: str | None = None
    max_length: int | None = Field(None, ge=2)
    packing: bool = False
    generate: int = Field(0, ge=0)
    scores: list[Score] = []
    max_new_tokens: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _one_form(self) -> "TextGeneration":
        pair = [self.prompt is not None, self.completion is not None]
        forms = [all(pair), self.messages is not None, self.text is not None]
        if sum(forms) != 1 or any(pair) != all(pair):
            raise ValueError(
                "the columns of one form are wanted: prompt and completion, or messages, or text"
            )
        if self.input is not None and self.prompt is None:
            raise ValueError("input stands below a prompt; name the prompt's column as well")
        if self.scores and not self.generate:
            raise ValueError("scores are of generated texts; say of how many rows by generate")
        if self.text is not None and self.generate:
            raise ValueError(
                "generate needs a prompt to go on from: prompt and completion, or messages"
            )
        return self

    @property
    def unequal(self) -> bool:
        return not self.packing

    def columns(self) -> dict[str, str]:
        names = ("prompt", "input", "completion", "messages", "text")
        return {f"task.{n}": getattr(self, n) for n in names if getattr(self, n) is not None}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        no_classes(keep)
        self.refuse_missing(data)
        data = DatasetDict({split: self._typed(rows) for split, rows in data.items()})
        problems = [p for split in data for p in self._problems(f"data.{split}", data[split], True)]
        if problems:
            raise DataError("\n".join(problems))
        return data

    def _typed(self, rows: Dataset) -> Dataset:
        names = (self.prompt, self.input, self.completion, self.text)
        rows = as_text(rows, [n for n in names if n in rows.column_names])
        return rows if self.messages is None else chat.with_roles(rows, self.messages)

    def asked(self, row: dict) -> str:
        """The prompt of a row, and below it the input, if there is one."""
        more = (row.get(self.input) or "").strip() if self.input else ""
        return f"{row[self.prompt]}\n\n{more}" if more else row[self.prompt]

    def _problems(self, place: str, rows: Dataset, answered: bool) -> list[str]:
        if self.messages is None:
            named = [name for name in self.columns().values() if name in rows.column_names]
            columns = [name for name in named if name != self.input]  # it may be missing
            silent = empty_texts(place, rows, self.completion) if answered else []
            return text_problems(place, rows, columns) or silent
        found = [chat.problem(one, answered) for one in rows[self.messages]]
        lines = [f"row {i}: {self.messages!r} {p}." for i, p in enumerate(found, 1) if p]
        return first_few(place, lines)

    def prepare(self, processor: Any, model: Any) -> None:
        """Vocabulary, limit, chat template and end-of-text token; packing is tried on the model.

        Template, end token and how answers are written are saved, so that ``generate`` and
        pipelines find them and answer as ``predict`` does.

        Raises:
            SourceError: one of them is missing, a prompt has no room before ``max_new_tokens``, or
                packed examples would see each other.
        """
        settle(processor, model)
        processor.chat_template = self.chat_template or processor.chat_template
        _refuse_lacking(processor, self)
        settle_answers(model, processor, self.max_new_tokens)
        if self.packing:
            refuse_leak(model)

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        limit = self._limit(processor)
        settings = {"task": self, "tokenizer": processor, "limit": limit}
        found = rows.map(
            encode_row, with_indices=True, fn_kwargs=settings, remove_columns=rows.column_names
        )
        kept = [number for number, count in enumerate(found["learned"]) if count]
        _tell_cut(found, limit, len(kept))
        found = found.select(kept).remove_columns(["tokens", "learned"])
        return packed(found, limit) if self.packing else found

    def _limit(self, processor: Any) -> int | None:
        limit = min(self.max_length or NO_LIMIT, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def collator(self, processor: Any) -> Callable:
        return LanguageCollator(processor.pad_token_id)

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingLanguage:
        return StreamingLanguage()

    def summary(self, logits: Any, labels: Any) -> torch.Tensor:
        return token_sums(logits, labels, shifts=True)

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        if not self.generate:
            return {}
        few = rows.select(range(min(self.generate, len(rows))))
        texts = (found["generated"] for found in self.predict(few, model, processor, 8))
        return answered(zip(map(self._shown, few), texts, strict=True), self.scores, processor)

    def _shown(self, row: dict) -> dict[str, str]:
        """What was asked and what was wanted, as text."""
        if self.messages is None:
            return {key.removeprefix("task."): row[name] for key, name in self.columns().items()}
        turns = row[self.messages]
        wanted = turns[-1]["content"] if turns[-1]["role"] == "assistant" else ""
        return {"prompt": chat.asking(turns)[-1]["content"], "completion": wanted}

    def read_inputs(self, path: Path) -> Dataset:
        rows = lines_or_table(path, self.messages or self.text or self.prompt)
        if self.messages and isinstance(rows[0].get(self.messages), str):  # a line is a question
            asked = [[{"role": "user", "content": text}] for text in rows[self.messages]]
            rows = Dataset.from_dict({self.messages: asked})
        missing = self.missing_columns(path.name, rows.column_names)
        if missing := [line for line in missing if not line.startswith(UNASKED)]:
            raise DataError("\n".join(missing))
        rows = self._typed(rows.remove_columns([c for c in rows.column_names if c == "generated"]))
        asked = rows.remove_columns([c for c in rows.column_names if c == self.completion])
        if problems := self._problems(f"'{path.name}'", asked, False):
            raise DataError("\n".join(problems))
        return rows

    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """Every row with ``generated``: the likeliest token each time, up to an end token.

        Of a prompt that leaves no room for ``max_new_tokens``, the last tokens are taken.
        """
        limit = processor.model_max_length  # the model's, not where the training cut examples
        room = max(1, limit - self.max_new_tokens) if limit < NO_LIMIT else None
        for start in range(0, len(rows), size):
            part = rows.select(range(start, min(start + size, len(rows))))
            prompts = [prompt_ids(row, self, processor) for row in part]
            prompts = [ids[-room:] if room else ids for ids in prompts]
            texts = continued(prompts, model, processor, self.max_new_tokens)
            for row, text in zip(part, texts, strict=True):
                yield {**row, "generated": text}


def _refuse_lacking(processor: Any, task: TextGeneration) -> None:
    lacking = []
    if processor.eos_token_id is None:
        lacking.append("model.name: the tokenizer has no end-of-text token to end a completion.")
    if task.messages and processor.chat_template is None:
        lacking.append(
            "task.messages: the tokenizer has no chat template. Set task.chat_template, a Jinja "
            "template over messages and add_generation_prompt."
        )
    if task.messages and not processor.is_fast:
        lacking.append("task.messages: the tokenizer tells no positions; a fast one is needed.")
    if task.packing and task._limit(processor) is None:
        lacking.append("task.packing: the model knows no limit. Set task.max_length.")
    if lacking:
        raise SourceError("\n".join(lacking))


def _tell_cut(found: Dataset, limit: int | None, kept: int) -> None:
    """Say how many examples are cut, and how many have lost all they should teach.

    Raises:
        DataError: all of them.
    """
    cut = sum(limit is not None and count > limit for count in found["tokens"])
    lost = len(found) - kept
    longest = max(found["tokens"])
    record("examples", len(found), cut, limit, longest, left_out=lost)
    if cut or lost:
        log.warning(
            "task.max_length: %d of %d examples are cut at %s tokens (the longest has %d); %d "
            "have nothing left to learn and are left out.", cut, len(found), limit, longest, lost
        )  # fmt: skip
    if not kept:
        raise DataError(
            f"task.max_length: at {limit} tokens, no example has a token left to learn (the "
            f"longest has {longest}). Raise it, or shorten the prompts."
        )
