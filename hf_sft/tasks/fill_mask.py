"""fill-mask: a masked language model goes on with its pre-training, on texts of the field."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field

from hf_sft.errors import DataError, SourceError
from hf_sft.tasks.base import Task
from hf_sft.tasks.cut_texts import record
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.language_collator import padded
from hf_sft.tasks.language_metrics import SCALARS
from hf_sft.tasks.masked_words import StreamingMasked, masked_sums, told
from hf_sft.tasks.masking import ROW, MaskingCollator, settled, special_tokens
from hf_sft.tasks.text_inputs import as_text, lines_or_table, no_classes, text_problems, with_texts
from hf_sft.tasks.tokenizers import NO_LIMIT, settle

log = logging.getLogger(__name__)
ANSWERS = ("word", "probability", "words", "mask")  # columns of the predictions


class FillMask(Task):
    """Texts -> tokens of which ``mask_probability`` are hidden and to be found again.

    loss = Σ_m −log p(x_m | the rest) / M over the M hidden tokens; perplexity is its exponential.
    In training they are drawn for every row and epoch, from the training's seed; in evaluation
    once, from each row's own tokens and ``mask_seed``, so that numbers repeat. Without
    ``group`` every text is an example of its own, cut at ``max_length``, which is told.

    Keys:
        text: a column.
        max_length: tokens of an example; the source's limit by default.
        group: blocks of max_length are cut from all texts, one after the other with the separator
            token between them, in place of a text each.
        mask_probability: the share of tokens that is hidden.
        mask_seed: of what is hidden in evaluation.
        top_k: words that predict gives for each mask.
    """

    type: Literal["fill-mask"] = "fill-mask"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    auto_processor: ClassVar[str] = "AutoTokenizer"
    unequal: ClassVar[bool] = True
    selection_metric: ClassVar[str] = "perplexity"
    greater_is_better: ClassVar[bool] = False
    metric_names: ClassVar[tuple[str, ...]] = SCALARS
    label_names: ClassVar[list[str]] = ["labels"]
    text: str = "text"
    max_length: int | None = Field(None, ge=4)
    group: bool = False
    mask_probability: float = Field(0.15, gt=0, lt=1)
    mask_seed: int = Field(0, ge=0, lt=2**32)
    top_k: int = Field(5, ge=1)

    def columns(self) -> dict[str, str]:
        return {"task.text": self.text}

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        no_classes(keep)
        self.refuse_missing(data)
        data = DatasetDict({split: as_text(rows, [self.text]) for split, rows in data.items()})
        problems = [
            p for s, rows in data.items() for p in text_problems(f"data.{s}", rows, [self.text])
        ]
        if problems:
            raise DataError("\n".join(problems))
        return data

    def prepare(self, processor: Any, model: Any) -> None:
        """As `settle`.

        Raises:
            SourceError: the tokenizer has no mask token, or does not belong to the model.
        """
        settle(processor, model)
        if processor.mask_token_id is None:
            raise SourceError(
                "model.name: the tokenizer has no mask token, so the model was not trained to fill "
                "one. Name a masked language model, or take task: {type: text-generation}."
            )

    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        found = self._tokens(rows, processor)
        if not self.group:
            _tell_cut(found, self._limit(processor))
        return self._kept(found, processor)

    def _tokens(self, rows: Dataset, processor: Any) -> Dataset:
        limit, settings = self._limit(processor), {"column": self.text, "tokenizer": processor}
        if not self.group:
            return rows.map(_tokenize, fn_kwargs=settings, remove_columns=rows.column_names)
        if limit is None:
            raise DataError("task.group: the model knows no limit. Set task.max_length.")
        return rows.map(
            _blocks, batched=True, batch_size=None, fn_kwargs={**settings, "limit": limit},
            remove_columns=rows.column_names,
        )  # fmt: skip

    def _kept(self, found: Dataset, processor: Any) -> Dataset:
        """Rows of which something could be hidden, at most as long as the model reads, numbered."""
        limit = self._limit(processor)
        if any(limit is not None and len(ids) > limit for ids in found["input_ids"]):
            special = processor.all_special_ids
            found = found.map(_shorten, fn_kwargs={"limit": limit, "special": special})
        kept = [
            i for i, ids in enumerate(found["input_ids"]) if 0 in special_tokens(ids, processor)
        ]
        if not kept:
            raise DataError(f"task.text: no row of {self.text!r} has a word that could be hidden.")
        return found.select(kept).add_column(ROW, range(len(kept)))

    def _limit(self, processor: Any) -> int | None:
        limit = min(self.max_length or NO_LIMIT, processor.model_max_length)
        return limit if limit < NO_LIMIT else None

    def held_still(self, rows: Dataset, processor: Any) -> Dataset:
        return settled(rows, processor, self.mask_probability, self.mask_seed)

    def collator(self, processor: Any) -> Callable:
        return MaskingCollator(processor, self.mask_probability)

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingMasked:
        return StreamingMasked()

    def summary(self, logits: Any, labels: Any) -> torch.Tensor:
        return masked_sums(logits, labels)

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        """The hidden words that the model held for least likely."""
        if not metrics.surprises:
            return {}
        encoded = self._kept(self._tokens(rows, processor), processor)
        hidden = encoded.select([surprise["row"] for surprise in metrics.surprises])
        hidden = self.held_still(hidden, processor)
        return {"most_surprising_words": told(metrics.surprises, hidden, processor)}

    def read_inputs(self, path: Path) -> Dataset:
        rows = lines_or_table(path, self.text)
        if missing := self.missing_columns(path.name, rows.column_names):
            raise DataError("\n".join(missing))
        taken = set(ANSWERS) - {self.text}
        rows = rows.remove_columns([c for c in rows.column_names if c in taken])
        rows = as_text(with_texts(path, rows, [self.text]), [self.text])
        if problems := text_problems(f"'{path.name}'", rows, [self.text]):
            raise DataError("\n".join(problems))
        return rows

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """One record per mask token: its number in the text, the likeliest word, ``words`` so many.

        Raises:
            DataError: a text without a mask token, or where it stands beyond the model's limit.
        """
        limit = self._limit(processor)
        encoded = [processor(text)["input_ids"][:limit] for text in rows[self.text]]
        _refuse_unmasked(encoded, processor, limit)
        for start in range(0, len(encoded), size):
            part = encoded[start : start + size]
            ids = padded(part, processor.pad_token_id).to(model.device)
            mask = padded([[1] * len(one) for one in part], 0).to(model.device)
            logits = model(input_ids=ids, attention_mask=mask).logits
            for row, tokens, scores in zip(
                rows.select(range(start, start + len(part))), ids, logits, strict=True
            ):
                places = (tokens == processor.mask_token_id).nonzero().flatten().tolist()
                for number, at in enumerate(places, 1):
                    words = _likeliest(scores[at], processor, self.top_k)
                    yield {**row, "mask": number, **words[0], "words": words}


def _likeliest(logits: torch.Tensor, tokenizer: Any, count: int) -> list[dict]:
    """The words of the largest logits (vocabulary,) with their probabilities, best first."""
    best = logits.float().softmax(-1).topk(min(count, len(logits)))
    return [
        {"word": tokenizer.decode([token]).strip(), "probability": probability}
        for probability, token in zip(*(found.tolist() for found in best), strict=True)
    ]


def _refuse_unmasked(encoded: list[list[int]], tokenizer: Any, limit: int | None) -> None:
    problems = [
        f"row {number} has no {tokenizer.mask_token} among its first {limit or len(ids)} tokens. "
        "Put one where the model is to find the word."
        for number, ids in enumerate(encoded, 1)
        if tokenizer.mask_token_id not in ids
    ]
    if problems:
        raise DataError("\n".join(first_few("input", problems)))


def _tokenize(row: dict, column: str, tokenizer: Any) -> dict[str, list[int]]:
    return {"input_ids": tokenizer(row[column])["input_ids"]}


def _tell_cut(rows: Dataset, limit: int | None) -> None:
    """How many texts will be cut at ``limit`` tokens; the last token stays what it was."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    cut = sum(limit is not None and length > limit for length in lengths)
    record("texts", len(lengths), cut, limit, max(lengths, default=0))
    if cut:
        log.warning(
            "task.max_length: %d of %d texts are cut at %d tokens (the longest has %d). With "
            "task.group: true nothing is lost.", cut, len(lengths), limit, max(lengths)
        )  # fmt: skip


def _shorten(row: dict, limit: int, special: list[int]) -> dict[str, list[int]]:
    ids = row["input_ids"]
    if len(ids) <= limit:
        return {"input_ids": ids}
    end = ids[-1:] if ids[-1] in special else []
    return {"input_ids": ids[: limit - len(end)] + end}


def _blocks(
    batch: dict[str, list], column: str, tokenizer: Any, limit: int
) -> dict[str, list[list[int]]]:
    """Blocks of ``limit`` tokens from all texts; the last one may be shorter."""
    between = [] if tokenizer.sep_token_id is None else [tokenizer.sep_token_id]
    texts = tokenizer(batch[column], add_special_tokens=False)["input_ids"]
    stream = [token for ids in texts for token in [*ids, *between]][: -len(between) or None]
    frame = tokenizer("")["input_ids"]  # what stands around every text
    before, after = frame[: (len(frame) + 1) // 2], frame[(len(frame) + 1) // 2 :]
    room = limit - len(frame)
    return {
        "input_ids": [
            [*before, *stream[at : at + room], *after] for at in range(0, len(stream), room)
        ]
    }
