"""Learning rates of their own for parts of a model: real ``lr`` of optimizer groups."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hf_sft.layer_groups import LayerGroups
from hf_sft.selection import Rule, first_match


class LearningRate(Rule):
    """One entry of ``learning_rates``: ``multiplier``, or ``decay`` for each step below the head.

    The head has η, the last block η·decay, the first η·decayⁿ, the stem η·decayⁿ⁺¹. ULMFiT's
    discriminative rates are decay 1/2.6 (Howard and Ruder 2018, arXiv 1801.06146); .65 to .95 is
    usual for transformers.

    Keys:
        multiplier: factor on the learning rate.
        decay: factor for each step below the head.

    Example: {role: head, multiplier: 10}
    """

    multiplier: float | None = Field(None, gt=0, allow_inf_nan=False)
    decay: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.multiplier is None) == (self.decay is None):
            raise ValueError("give either multiplier or decay")
        return self

    def factor(self, depth: int, deepest: int) -> float:
        """On the learning rate, at a depth: 0 for the stem, ``deepest`` for the head."""
        return self.multiplier if self.decay is None else self.decay ** (deepest - depth)


def multipliers(rules: Sequence[LearningRate], groups: LayerGroups) -> dict[str, float]:
    """Parameter -> factor on its learning rate; the first rule that fits wins, 1 where none does.

    Raises:
        RecipeError: a rule that fits nothing.
    """
    chosen = first_match(rules, groups, "learning_rates")
    blocks = {name: i for i, block in enumerate(groups.blocks, 1) for name in block.parameters}
    deepest = len(groups.blocks) + 1
    depth = dict.fromkeys(groups.parameters, 0) | blocks
    depth |= dict.fromkeys(groups.head.parameters, deepest)
    return {name: rule.factor(depth[name], deepest) for name, rule in chosen.items()}


def regroup_(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    factors: Mapping[str, float],
    apart: Callable[[str], Hashable],
) -> None:
    """Split the groups so that one learning rate holds in each; equal ones stay together.

    Args:
        optimizer: before its first step and before any scheduler.
        names: id of a parameter -> its name.
        factors: name -> multiplier on the group's ``lr``.
        apart: parameters for which it differs come into different groups.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = factors.get(name, 1.0)
            # The unscaled rate first: it is the one that Trainer logs.
            key = (factor != 1.0, number, factor, apart(name))
            if key not in groups:
                groups[key] = {**group, "params": [], "lr": group["lr"] * factor}
            groups[key]["params"].append(parameter)
    order = sorted(groups, key=lambda key: (key[0], key[1]))
    optimizer.param_groups[:] = [groups[key] for key in order]


def keep_ratios_(scheduler: Any) -> None:
    """Let a plateau schedule reduce every group alike: its floor and least change are absolute."""
    if isinstance(scheduler, ReduceLROnPlateau):
        rates = [group["lr"] for group in scheduler.optimizer.param_groups]
        scheduler.eps = 0.0
        if len(set(scheduler.min_lrs)) == 1:  # else a checkpoint has brought them
            scheduler.min_lrs = [scheduler.min_lrs[0] * rate / rates[0] for rate in rates]


class StepFactors:
    """Factors on the learning rate that change from step to step, put in only while it is made.

    Schedulers compute the next rate from their own base rates, or from the last one: neither ever
    sees these factors. Each parameter group must hold parameters of one factor.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        names: Mapping[int, str],
        factor: Callable[[str], float],
    ):
        self.names, self.factor = names, factor
        self._rates: list[float] = []
        optimizer.register_step_pre_hook(self._scale)

    def _scale(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.factor(self.names[id(group["params"][0])])

    def restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The scheduler's rates again; to be registered as the last step post hook."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
