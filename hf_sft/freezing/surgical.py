"""Train one block and the head."""

from typing import ClassVar, Literal

from hf_sft.errors import RecipeError
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.freezing.phases import block_number, names_of
from hf_sft.layer_groups import LayerGroups


class Surgical(FreezePolicy):
    """One block, or the stem, trains, and the head; everything else is frozen.

    Lee et al. 2023, "Surgical fine-tuning improves adaptation to distribution shifts" (ICLR, arXiv
    2210.11466): early blocks for a change of input (Camelyon17: first block 95.6, all layers 92.3),
    middle ones for features, late ones for labels. Which one is chosen on validation data of the
    target. They keep the source's head; a new one has to train. Cost: gradients cross what lies
    behind the block; optimizer state for one block.

    Keys:
        block: its number from 0, from the end where negative, or stem.

    Example: {type: surgical, block: 0}
    """

    citation: ClassVar[str] = """@inproceedings{lee2023surgical,
  title     = {Surgical Fine-Tuning Improves Adaptation to Distribution Shifts},
  author    = {Lee, Yoonho and Chen, Annie S. and Tajwar, Fahim and Kumar, Ananya and
               Yao, Huaxiu and Liang, Percy and Finn, Chelsea},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2023}, note = {arXiv:2210.11466}
}"""
    type: Literal["surgical"] = "surgical"
    block: int | Literal["stem"]

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        if self.block != "stem":
            return names_of([groups.blocks[block_number(self.block, groups, "block")]])
        if groups.stem is None:
            last = len(groups.blocks) - 1
            raise RecipeError(f"freeze.block: this model has no stem. Choices: 0 to {last}.")
        return names_of([groups.stem])
