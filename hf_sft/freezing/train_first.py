"""Train the first blocks and the head."""

from typing import Literal

from pydantic import Field

from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.freezing.train_last import check_count
from hf_sft.layer_groups import LayerGroups


class TrainFirst(FreezePolicy):
    """Stem, the first ``count`` blocks and the head train; the later blocks are frozen.

    For a change of input rather than of task: Lee et al. 2023, "Surgical fine-tuning" (ICLR, arXiv
    2210.11466). Gradients still have to cross the frozen blocks, so little memory is saved.

    Keys:
        count: blocks that train, beside the stem.
    """

    type: Literal["train-first"] = "train-first"
    count: int = Field(1, ge=0)

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        check_count(self.count, len(groups.blocks))
        stem = [groups.stem] if groups.stem else []
        chosen = [*stem, *groups.blocks[: self.count]]
        return frozenset(name for group in chosen for name in group.parameters)
