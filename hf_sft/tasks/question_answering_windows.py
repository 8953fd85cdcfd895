"""A long context as overlapping windows of tokens, and the best spans of a question's windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_sft.errors import DataError

CHUNK = 64  # rows that are cut at a time, where windows are made again on the way
NOWHERE = float("-inf")
Span = tuple[int, int]  # characters of the context, the end not included


@dataclass(frozen=True)
class Window:
    """What the model sees of one row at a time.

    Attributes:
        row: the number of the row it was cut from.
        inputs: input_ids and what else the tokenizer gives, one list each.
        spans: per token the characters of the context it stands for; None outside the context.
        null: the position that means "no answer here": [CLS], or the first.
    """

    row: int
    inputs: dict[str, list[int]]
    spans: list[Span | None]
    null: int

    def positions(self, answer: Span | None) -> tuple[int, int]:
        """First and last token of the answer; twice ``null`` where it is not whole in here."""
        known = [i for i, span in enumerate(self.spans) if span is not None]
        if answer is None or not known:
            return self.null, self.null
        inside = self.spans[known[0]][0] <= answer[0] and answer[1] <= self.spans[known[-1]][1]
        found = [i for i in known if self.spans[i][1] > answer[0] and self.spans[i][0] < answer[1]]
        return (found[0], found[-1]) if inside and found else (self.null, self.null)


@dataclass(frozen=True)
class Cutter:
    """Questions and contexts -> windows: [CLS] question [SEP] a part of the context [SEP].

    Args:
        tokenizer: a fast one, which knows where its tokens stand.
        limit: tokens of a window; a question takes at most half of them.
        stride: tokens that a window shares with the one before.
    """

    tokenizer: Any
    limit: int
    stride: int

    def __call__(self, questions: Sequence[str], contexts: Sequence[str]) -> Iterator[Window]:
        """The windows of all rows in order; ``row`` counts from 0."""
        found = self.tokenizer(
            [self._short(question.strip()) for question in questions],
            list(contexts),
            truncation="only_second",
            max_length=self.limit,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        names = [n for n in self.tokenizer.model_input_names if n in found]
        null_id = self.tokenizer.cls_token_id
        for number, row in enumerate(found["overflow_to_sample_mapping"]):
            ids, parts = found["input_ids"][number], found.sequence_ids(number)
            places = zip(parts, found["offset_mapping"][number], strict=True)
            yield Window(
                row,
                {name: found[name][number] for name in names},
                [tuple(place) if part == 1 else None for part, place in places],
                ids.index(null_id) if null_id in ids else 0,
            )

    def of_rows(self, rows: Dataset, question: str, context: str) -> Iterator[Window]:
        """The windows of a data set, a few rows at a time: nothing piles up."""
        for begin in range(0, len(rows), CHUNK):
            part = rows[begin : begin + CHUNK]
            for window in self(part[question], part[context]):
                yield Window(begin + window.row, window.inputs, window.spans, window.null)

    def _short(self, question: str) -> str:
        """The question, its end cut off where it takes more than half of a window."""
        room = max(1, self.limit // 2 - self.tokenizer.num_special_tokens_to_add(pair=True))
        found = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        places = found["offset_mapping"]
        return question if len(places) <= room else question[: places[room - 1][1]]


@dataclass
class Candidates:
    """The best spans of one row over its windows, and the score of "no answer".

    Attributes:
        spans: characters -> score, the largest of the windows that show the span.
        null: the smallest over the windows of s_null + e_null, as BERT's script for SQuAD 2 has it.
    """

    row: int
    spans: dict[Span, float] = field(default_factory=dict)
    null: float = float("inf")

    def best(self, most: int) -> list[tuple[Span, float]]:
        """Up to ``most`` spans with their scores, the best first."""
        return sorted(self.spans.items(), key=lambda item: (-item[1], item[0]))[:most]

    def take(self, window: Window, spans: list[tuple[int, int, float]], null: float) -> None:
        """Add what one window shows: (first token, last token, score) each."""
        self.null = min(self.null, null)
        for first, last, score in spans:
            place = window.spans[first][0], window.spans[last][1]
            self.spans[place] = max(score, self.spans.get(place, NOWHERE))


class Collector:
    """Windows with their logits in, finished rows out; only the row at hand is kept."""

    def __init__(self, most: int, longest: int):
        self.most, self.longest = most, longest
        self.open: Candidates | None = None

    def add(self, windows: list[Window], start: Any, end: Any) -> Iterator[Candidates]:
        """Take logits (windows, positions); the rows whose last window has passed.

        Raises:
            DataError: a logit is not finite.
        """
        start, end = torch.as_tensor(start).float().cpu(), torch.as_tensor(end).float().cpu()
        context = torch.zeros(start.shape, dtype=torch.bool)
        for number, window in enumerate(windows):
            context[number, : len(window.spans)] = torch.tensor(
                [s is not None for s in window.spans]
            )
        found = best_spans(start, end, context, self.most, self.longest)
        for number, (window, spans) in enumerate(zip(windows, found, strict=True)):
            null = float(start[number, window.null] + end[number, window.null])
            if not all(map(isfinite, [null, *(score for *_, score in spans)])):
                raise DataError(
                    "The model's outputs are not finite: training has diverged. Lower "
                    "training.learning_rate and start anew with --overwrite."
                )
            if self.open is not None and window.row != self.open.row:
                yield self.open
                self.open = None
            self.open = self.open or Candidates(window.row)
            self.open.take(window, spans, null)

    def close(self) -> Iterator[Candidates]:
        """The last row."""
        if self.open is not None:
            yield self.open
            self.open = None


def best_spans(
    start: Tensor, end: Tensor, context: Tensor, most: int, longest: int
) -> list[list[tuple[int, int, float]]]:
    """Per window the ``most`` spans with the largest s_i + e_j, i ≤ j < i + ``longest``.

    Exact: of all spans inside the context, not of the best starts and ends alone.

    Args:
        start, end, context: (windows, positions); ``context`` is true where an answer may stand.
    """
    start, end = start.masked_fill(~context, NOWHERE), end.masked_fill(~context, NOWHERE)
    padded = torch.nn.functional.pad(end, (0, longest - 1), value=NOWHERE)
    scores = (start[:, :, None] + padded.unfold(1, longest, 1)).flatten(1)
    values, places = scores.topk(min(most, scores.shape[1]))
    return [
        [
            (place // longest, place // longest + place % longest, value)
            for value, place in zip(row, at, strict=True)
            if value != NOWHERE
        ]
        for row, at in zip(values.tolist(), places.tolist(), strict=True)
    ]
