"""Rows of an encoder-decoder as one batch."""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100
BEHIND = ("labels", "decoder_input_ids")  # padded at their end: the decoder starts at its first


class Seq2SeqCollator:
    """Lists of ids -> tensors (rows, longest); labels are padded with -100, ids with the pad token.

    The decoder's inputs come with the batch, the labels shifted by one behind the start token, as
    the model itself would make them: a loss that takes the labels out of the batch (label
    smoothing) leaves it something to read.
    """

    def __init__(self, pad: int, side: str = "right"):
        self.side = side
        self.fill = {
            "input_ids": pad,
            "attention_mask": 0,
            "labels": IGNORED,
            "decoder_input_ids": pad,
        }

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {key: self._padded(key, [row[key] for row in rows]) for key in rows[0]}

    def _padded(self, key: str, rows: list[list[int]]) -> Tensor:
        longest = max(1, max(len(row) for row in rows))
        fill, left = self.fill[key], self.side == "left" and key not in BEHIND
        filled = [
            [fill] * (longest - len(row)) + row if left else row + [fill] * (longest - len(row))
            for row in map(list, rows)
        ]
        return torch.tensor(filled, dtype=torch.long)
