"""Freezing policies, one per file; each is the ``freeze`` block of a recipe."""

from hf_sft.freezing.base import FreezePolicy, Moment, Plan, Signals, TrainAll
from hf_sft.freezing.linear_probe import LinearProbe
from hf_sft.freezing.lp_ft import LPFT
from hf_sft.freezing.train_first import TrainFirst
from hf_sft.freezing.train_last import TrainLast
from hf_sft.freezing.train_only import TrainOnly

__all__ = [
    "FreezePolicy", "LPFT", "LinearProbe", "Moment", "Plan", "Signals", "TrainAll", "TrainFirst",
    "TrainLast", "TrainOnly",
]  # fmt: skip
