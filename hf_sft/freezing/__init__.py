"""Freezing policies, one per file; each is the ``freeze`` block of a recipe."""

from hf_sft.freezing.auto_rgn import AutoRGN
from hf_sft.freezing.autofreeze import AutoFreeze
from hf_sft.freezing.base import FreezePolicy, Moment, Plan, Signals, TrainAll
from hf_sft.freezing.bitfit import BitFit
from hf_sft.freezing.chain_thaw import ChainThaw
from hf_sft.freezing.gradual import Gradual
from hf_sft.freezing.linear_probe import LinearProbe
from hf_sft.freezing.lisa import LISA
from hf_sft.freezing.lp_ft import LPFT
from hf_sft.freezing.norm_only import NormOnly
from hf_sft.freezing.surgical import Surgical
from hf_sft.freezing.train_first import TrainFirst
from hf_sft.freezing.train_last import TrainLast
from hf_sft.freezing.train_only import TrainOnly
from hf_sft.freezing.train_range import TrainRange

__all__ = [
    "AutoFreeze", "AutoRGN", "BitFit", "ChainThaw", "FreezePolicy", "Gradual", "LISA", "LPFT",
    "LinearProbe", "Moment", "NormOnly", "Plan", "Signals", "Surgical", "TrainAll", "TrainFirst",
    "TrainLast", "TrainOnly", "TrainRange",
]  # fmt: skip
