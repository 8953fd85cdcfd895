"""Train the biases and the head."""

from typing import ClassVar, Literal

from hf_sft.errors import RecipeError
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class BitFit(FreezePolicy):
    """All bias vectors train, those of normalisation layers included, and the head.

    Ben Zaken, Goldberg and Ravfogel 2022, "BitFit" (ACL, arXiv 2106.10199): with small to medium
    training data competitive with, sometimes better than, training all of BERT, with 0.08 % of
    BERT-large's parameters; behind it on larger data. It wants a larger learning rate than
    fine-tuning. Cost: gradients cross the whole model; optimizer state for the biases alone.
    """

    citation: ClassVar[str] = """@inproceedings{benzaken2022bitfit,
  title     = {{BitFit}: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
               Language-models},
  author    = {Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli},
  booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  year      = {2022}, note = {arXiv:2106.10199}
}"""
    type: Literal["bitfit"] = "bitfit"

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        biases = {n for n in groups.parameters if n.rpartition(".")[2].endswith("bias")}
        if not biases - self.always(groups, progress):
            raise RecipeError("freeze: bitfit finds no bias below the head (T5 has none).")
        return frozenset(biases)
