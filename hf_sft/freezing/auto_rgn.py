"""Auto-RGN: learning rates by the relative size of the gradients."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from hf_sft.freezing.base import FreezePolicy, Moment, Signals
from hf_sft.freezing.gradient_norms import gradient_norms, weight_norms
from hf_sft.freezing.phases import phase
from hf_sft.freezing.surgical import Surgical
from hf_sft.layer_groups import LayerGroups


class AutoRGN(FreezePolicy):
    """Everything trains; tensor n at rate η·w_n, w_n = RGN_n / max_m RGN_m.

    RGN_n = ‖g_n‖₂/‖θ_n‖₂ of the task's gradient, averaged over the first ``batches`` steps of every
    ``every`` of training (the paper: 5 batches of each epoch). Until they are known, the rates of
    the interval before stay, in the first one those of the optimizer. What is new, and a tensor
    that was all zeros when first seen, have no size to compare with: w = 1, and no part in the
    maximum, which else would be theirs.

    Lee et al. 2023, "Surgical fine-tuning" (ICLR, arXiv 2210.11466): mean rank 1.29 of 6 methods on
    7 shifts. Their code builds Adam anew each epoch; here its moments stay. Cost: two norms for
    each tensor, in ``batches`` steps of an interval; one optimizer group for each tensor.

    Keys:
        batches: steps over which the norms are averaged.
        every: the share of training between two measurements.
    """

    dynamic: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True
    watches: ClassVar[frozenset[str]] = frozenset({"gradients"})
    citation: ClassVar[str] = Surgical.citation
    type: Literal["auto-rgn"] = "auto-rgn"
    batches: int = Field(5, ge=1)
    every: float = Field(0.1, gt=0, le=1)

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return frozenset(groups.parameters)

    def multipliers(
        self, groups: LayerGroups, progress: float, signals: Signals
    ) -> Mapping[str, float]:
        return signals.values.get("w", {})

    def observe(self, groups: LayerGroups, signals: Signals, moment: Moment) -> Signals:
        seen, interval = dict(signals.values), phase(moment.progress, self.every)
        if seen.get("interval") != interval:
            if 0 < seen.get("steps", 0) < self.batches:  # the interval was shorter than that
                seen["w"] = relative_rates(seen["sums"])
            seen |= {"interval": interval, "steps": 0, "sums": {}, "blank": seen.get("blank")}
        if seen["steps"] == self.batches:
            return signals
        g = gradient_norms(moment)
        if g:
            theta = weight_norms(moment)
            if seen["blank"] is None:
                seen["blank"] = sorted(n for n in g if not theta[n] or n in groups.fresh)
            ratios = {n: g[n] / theta[n] for n in g if n not in seen["blank"] and theta[n]}
            seen["sums"] = {n: seen["sums"].get(n, 0.0) + ratio for n, ratio in ratios.items()}
            seen["steps"] += 1
        if seen["steps"] == self.batches:
            seen |= {"w": relative_rates(seen["sums"]), "sums": {}}
        return Signals(seen, signals.seed)


def relative_rates(sums: Mapping[str, float]) -> dict[str, float]:
    """w_n = Σ_t RGN_n / max_m Σ_t RGN_m."""
    largest = max(sums.values(), default=0.0) or 1.0
    return {name: value / largest for name, value in sums.items()}
