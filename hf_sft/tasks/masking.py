"""Masked language modelling: which tokens are hidden, anew in training, for good in evaluation."""

import zlib
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from hf_sft.tasks.language_collator import IGNORED, padded


class MaskingCollator:
    """``input_ids`` with some tokens hidden, ``labels`` (-100 elsewhere) and ``attention_mask``.

    Rows that have ``labels`` are settled and are only padded. In all others, tokens are hidden by
    transformers' DataCollatorForLanguageModeling from the random state of torch: 80 % become the
    mask token, 10 % a random one, 10 % stay (Devlin et al. 2019, arXiv 1810.04805). A row of which
    nothing was drawn gets one mask, so that no batch is without a loss.
    """

    def __init__(self, tokenizer: Any, probability: float):
        self.tokenizer = tokenizer
        self.mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = padded([row["input_ids"] for row in rows], self.tokenizer.pad_token_id)
        present = padded([[1] * len(row["input_ids"]) for row in rows], 0)
        if "labels" in rows[0]:
            labels = padded([row["labels"] for row in rows], IGNORED)
        else:
            special = padded([special_tokens(row["input_ids"], self.tokenizer) for row in rows], 1)
            ids, labels = self.hide(ids, special)
        return {"input_ids": ids, "labels": labels, "attention_mask": present}

    def hide(self, ids: Tensor, special: Tensor) -> tuple[Tensor, Tensor]:
        """(Ids with tokens hidden, labels), both (rows, positions); ``special`` is never hidden."""
        whole = ids.clone()
        hidden, labels = self.mask.torch_mask_tokens(ids, special_tokens_mask=special)
        for row in ((labels != IGNORED).sum(1) == 0).nonzero().flatten().tolist():
            places = (special[row] == 0).nonzero().flatten()
            if len(places):
                at = places[torch.randint(len(places), (1,), generator=self.mask.generator)]
                labels[row, at] = whole[row, at]
                hidden[row, at] = self.tokenizer.mask_token_id
        return hidden, labels


def settled(rows: Dataset, tokenizer: Any, probability: float, seed: int) -> Dataset:
    """The rows with their tokens hidden once and for all, so that their loss repeats.

    Each row's draw depends on its own tokens and ``seed``: not on batches, order or processes.
    """
    settings = {"collator": MaskingCollator(tokenizer, probability), "seed": seed}
    return rows.map(_settle, fn_kwargs=settings)


def _settle(row: dict, collator: MaskingCollator, seed: int) -> dict:
    number = zlib.crc32(np.asarray(row["input_ids"], dtype=np.int64).tobytes(), seed)
    collator.mask.generator = torch.Generator().manual_seed(number)
    ids = torch.tensor([row["input_ids"]])
    special = torch.tensor([special_tokens(row["input_ids"], collator.tokenizer)])
    hidden, labels = collator.hide(ids, special)
    return {"input_ids": hidden[0].tolist(), "labels": labels[0].tolist()}


def special_tokens(ids: list[int], tokenizer: Any) -> list[int]:
    """1 where a token is one of the tokenizer's own, which are never hidden."""
    own = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return [int(token in own) for token in ids]
