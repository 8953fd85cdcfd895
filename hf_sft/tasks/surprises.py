"""Surprises: the evaluated rows where a model was most wrong, a few numbers for each of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Surprises:
    """The rows with the largest scores of one pass in the data's order; memory is flat.

    Args:
        caption: what was given and what was said of one row -> what is told of it, mostly a line.
        most: how many rows are kept.
    """

    def __init__(self, caption: Callable[..., Any], most: int = 12):
        self.caption, self.most, self.seen = caption, most, 0
        self.kept: tuple[Tensor, ...] = ()

    def add(self, scores: Tensor, *said: Tensor) -> None:
        """The next rows: scores (rows,), only those above 0 count; ``said`` (rows, …) each."""
        numbers = torch.arange(self.seen, self.seen + len(scores))
        self.seen += len(scores)
        batch = tuple(t.detach().cpu() for t in (scores, numbers, *said))
        if self.kept:
            batch = tuple(torch.cat(pair) for pair in zip(self.kept, batch, strict=True))
        order = batch[0].argsort(descending=True, stable=True)[: self.most]
        self.kept = tuple(part[order[batch[0][order] > 0]] for part in batch)

    def told(self) -> list[dict[str, Any]]:
        """``{row, caption}``, the most surprising first; row numbers from 0. Then begin anew."""
        kept, self.kept, self.seen = self.kept, (), 0
        if not kept:
            return []
        _, numbers, *said = kept
        return [
            {"row": int(number), "caption": self.caption(*values)}
            for number, *values in zip(numbers, *said, strict=True)
        ]
