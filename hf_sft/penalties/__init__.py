"""Penalties, one method per file; each is a ``penalty`` block of a recipe."""

from hf_sft.penalties.ball import Ball
from hf_sft.penalties.base import Penalty, WeightPrior
from hf_sft.penalties.function_prior import FunctionPrior
from hf_sft.penalties.l2_sp import L2SP
from hf_sft.penalties.similarity import Similarity
from hf_sft.penalties.step_rule import StepRule

__all__ = ["Ball", "FunctionPrior", "L2SP", "Penalty", "Similarity", "StepRule", "WeightPrior"]
