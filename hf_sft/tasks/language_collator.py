"""Rows of token ids of unequal length as one batch, padded on the right."""

from typing import Any

import torch
from torch import Tensor

IGNORED = -100


class LanguageCollator:
    """``input_ids`` and ``labels``, with the mask of what is no padding, or positions of packs.

    Rows with ``position_ids`` are packs: they get no ``attention_mask`` and no cache, for only
    without both does transformers keep the examples apart. Their padding stands at position 0, so
    that every padding token is an example by itself; none has a label.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "input_ids": padded([row["input_ids"] for row in rows], self.pad_token_id),
            "labels": padded([row["labels"] for row in rows], IGNORED),
        }
        if "position_ids" in rows[0]:
            positions = padded([row["position_ids"] for row in rows], 0)
            return batch | {"position_ids": positions, "use_cache": False}
        return batch | {"attention_mask": padded([[1] * len(r["input_ids"]) for r in rows], 0)}


def padded(lists: list[list[int]], value: int, left: bool = False) -> Tensor:
    """(rows, longest), int64; the shorter ones filled with ``value`` on one side."""
    longest = max(map(len, lists))
    fill = [[value] * (longest - len(one)) for one in lists]
    both = zip(fill, lists, strict=True)
    return torch.tensor([[*f, *one] if left else [*one, *f] for f, one in both])
