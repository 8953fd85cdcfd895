"""Penalties, one method per file; each is a ``penalty`` block of a recipe."""

from hf_sft.penalties.base import Penalty, WeightPrior
from hf_sft.penalties.l2_sp import L2SP

__all__ = ["L2SP", "Penalty", "WeightPrior"]
