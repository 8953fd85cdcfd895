"""Masked language modelling: which tokens are hidden, anew in training, for good in evaluation."""

import zlib
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from hf_sft.draws import Draws
from hf_sft.tasks.language_collator import IGNORED, padded

ROW = "row"  # the column of encoded rows with their number in the split, which draws depend on


class MaskingCollator:
    """``input_ids`` with some tokens hidden, ``labels`` (-100 elsewhere) and ``attention_mask``.

    Rows that have ``labels`` are settled and are only padded. In all others, tokens are hidden by
    transformers' DataCollatorForLanguageModeling: 80 % become the mask token, 10 % a random one,
    10 % stay (Devlin et al. 2019, arXiv 1810.04805), as drawn for this ``row`` in this epoch. A
    row of which nothing was drawn gets one mask, so that no batch is without a loss.
    """

    def __init__(self, tokenizer: Any, probability: float):
        self.tokenizer, self.draws = tokenizer, Draws()
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "labels" not in rows[0]:
            rows = [self.hide(row["input_ids"], self.draws.generator(row[ROW])) for row in rows]
        return {
            "input_ids": padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id),
            "labels": padded([row["labels"] for row in rows], IGNORED),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        }

    def hide(self, ids: list[int], draw: torch.Generator) -> dict[str, list[int]]:
        """One row's ``input_ids`` with tokens hidden, and its ``labels``."""
        self.mask.generator = draw
        whole, special = torch.tensor([ids]), torch.tensor([special_tokens(ids, self.tokenizer)])
        hidden, labels = self.mask.torch_mask_tokens(whole.clone(), special_tokens_mask=special)
        places = (special[0] == 0).nonzero().flatten()
        if len(places) and bool((labels == IGNORED).all()):
            at = places[torch.randint(len(places), (1,), generator=draw)]
            labels[0, at] = whole[0, at]
            hidden[0, at] = self.tokenizer.mask_token_id
        return {"input_ids": hidden[0].tolist(), "labels": labels[0].tolist()}


def settled(rows: Dataset, tokenizer: Any, probability: float, seed: int) -> Dataset:
    """The rows with their tokens hidden once and for all, so that their loss repeats.

    Each row's draw depends on its own tokens and ``seed``: not on batches, order or processes.
    """
    settings = {"collator": MaskingCollator(tokenizer, probability), "seed": seed}
    return rows.map(_settle, fn_kwargs=settings)


def _settle(row: dict, collator: MaskingCollator, seed: int) -> dict:
    number = zlib.crc32(np.asarray(row["input_ids"], dtype=np.int64).tobytes(), seed)
    return collator.hide(row["input_ids"], torch.Generator().manual_seed(number))


def special_tokens(ids: list[int], tokenizer: Any) -> list[int]:
    """1 where a token is one of the tokenizer's own, which are never hidden."""
    own = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [int(token in own) for token in ids]
