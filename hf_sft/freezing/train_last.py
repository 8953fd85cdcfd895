"""Train the last blocks and the head."""

from typing import Literal

from pydantic import Field

from hf_sft.errors import RecipeError
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class TrainLast(FreezePolicy):
    """The last ``count`` blocks and the head train; stem and earlier blocks are frozen.

    ``count`` leaves the head out: 0 is linear probing. Li et al. 2018 (arXiv 1802.01483, figure 2):
    freezing the first layers helps plain L2 and brings nothing on top of L2-SP.

    Keys:
        count: blocks that train.
    """

    type: Literal["train-last"] = "train-last"
    count: int = Field(2, ge=0)

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return last_blocks(groups, self.count)


def last_blocks(groups: LayerGroups, count: int) -> frozenset[str]:
    """Parameters of the last ``count`` blocks."""
    blocks = groups.blocks
    check_count(count, len(blocks))
    chosen = blocks[len(blocks) - count :]
    return frozenset(name for group in chosen for name in group.parameters)


def check_count(count: int, blocks: int) -> None:
    """Refuse to count more blocks than there are."""
    if count > blocks:
        raise RecipeError(
            f"freeze.count: {count} blocks are asked for, but the model has {blocks}. "
            f"Choices: 0 to {blocks}."
        )
