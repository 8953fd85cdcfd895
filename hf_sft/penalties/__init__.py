"""Penalties, one method per file; each is a ``penalty`` block of a recipe."""

from hf_sft.penalties.ball import Ball
from hf_sft.penalties.base import WeightPrior
from hf_sft.penalties.delta import DELTA
from hf_sft.penalties.fisher_sp import FisherSP
from hf_sft.penalties.function_prior import FunctionPrior
from hf_sft.penalties.group_lasso_sp import GroupLassoSP
from hf_sft.penalties.l1_sp import L1SP
from hf_sft.penalties.l2_sp import L2SP
from hf_sft.penalties.lora_sp import LoRASP
from hf_sft.penalties.lwf import LwF
from hf_sft.penalties.mixout import Mixout
from hf_sft.penalties.penalty import Penalty
from hf_sft.penalties.r3f import R3F
from hf_sft.penalties.recadam import RecAdam
from hf_sft.penalties.similarity import Similarity
from hf_sft.penalties.spd import SPD
from hf_sft.penalties.step_rule import StepRule

__all__ = [
    "Ball",
    "DELTA",
    "FisherSP",
    "FunctionPrior",
    "GroupLassoSP",
    "L1SP",
    "L2SP",
    "LoRASP",
    "LwF",
    "Mixout",
    "Penalty",
    "R3F",
    "RecAdam",
    "SPD",
    "Similarity",
    "StepRule",
    "WeightPrior",
]
