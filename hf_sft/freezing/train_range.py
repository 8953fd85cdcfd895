"""Train a range of blocks and the head."""

from typing import Literal

from hf_sft.errors import RecipeError
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.freezing.phases import block_number, names_of
from hf_sft.layer_groups import LayerGroups


class TrainRange(FreezePolicy):
    """Blocks ``first`` to ``last`` train, both included, and the head; everything else is frozen.

    Blocks are numbered from 0; negative numbers count from the last block, -1. Lee et al. 2023,
    "Surgical fine-tuning" (ICLR, arXiv 2210.11466): on FMoW the last three blocks alone give 44.9
    (worst region), all layers 38.9. Cost: gradients cross what lies behind the range, nothing
    before it; optimizer state for the range only.

    Keys:
        first, last: block numbers, negative ones from the end.

    Example: {type: train-range, first: -3, last: -2}
    """

    type: Literal["train-range"] = "train-range"
    first: int
    last: int

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        first = block_number(self.first, groups, "first")
        last = block_number(self.last, groups, "last")
        if first > last:
            raise RecipeError(
                f"freeze: first {self.first} (block {first}) lies behind last {self.last} "
                f"(block {last}): exchange them."
            )
        return names_of(groups.blocks[first : last + 1])
