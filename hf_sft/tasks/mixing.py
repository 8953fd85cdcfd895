"""Mixing: batches of train whose pictures are two at a time, and their labels in proportion."""

from typing import Any

import torch
from torchvision.transforms import v2
from transformers import default_data_collator

from hf_sft.draws import mixed

NUMBER = "draw"  # the key of a row of train that holds a number drawn for it (`DrawnRows`)

MIXUP = """@inproceedings{zhang2018mixup,
  title     = {mixup: Beyond Empirical Risk Minimization},
  author    = {Zhang, Hongyi and Cisse, Moustapha and Dauphin, Yann N. and Lopez-Paz, David},
  booktitle = {ICLR}, year = {2018}, note = {arXiv:1710.09412}
}"""
CUTMIX = """@inproceedings{yun2019cutmix,
  title     = {{CutMix}: Regularization Strategy to Train Strong Classifiers with Localizable
               Features},
  author    = {Yun, Sangdoo and Han, Dongyoon and Oh, Seong Joon and Chun, Sanghyuk and
               Choe, Junsuk and Yoo, Youngjoon},
  booktitle = {ICCV}, year = {2019}, note = {arXiv:1905.04899}
}"""


class Mixing:
    """Rows -> one batch; those of train, which bring NUMBER, are mixed by torchvision.

    mixup (Zhang et al. 2018, arXiv 1710.09412): x̃_i = λ·x_i + (1 − λ)·x_{i−1}, ỹ_i likewise, with
    λ ~ Beta(α, α) drawn once for the batch. cutmix (Yun et al. 2019, arXiv 1905.04899): a rectangle
    of x_{i−1} in x_i, λ the share of x_i that is left. With both, one of them per batch. What is
    drawn depends on the rows' numbers alone, whichever worker makes the batch.

    Args:
        mixup, cutmix: α of each; None for not at all, but not of both.
    """

    def __init__(self, mixup: float | None, cutmix: float | None):
        ways = [v2.MixUp(alpha=mixup)] if mixup else []
        ways += [v2.CutMix(alpha=cutmix)] if cutmix else []
        self.way = v2.RandomChoice(ways)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """``pixel_values`` (rows, channels, height, width) and labels, of train (rows, classes)."""
        numbers = [row[NUMBER] for row in rows if NUMBER in row]
        batch = default_data_collator(
            [{key: value for key, value in row.items() if key != NUMBER} for row in rows]
        )
        if numbers:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mixed(*numbers))
                pictures, labels = self.way(batch["pixel_values"], batch["labels"])
            batch |= {"pixel_values": pictures, "labels": labels}
        return batch
