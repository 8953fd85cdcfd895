"""Gradual unfreezing: one part more at a time, the last first."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hf_sft.freezing.base import FreezePolicy, Moment, Signals
from hf_sft.freezing.phases import names_of, parts, phase
from hf_sft.layer_groups import LayerGroups


class Gradual(FreezePolicy):
    """The head trains from the start; the blocks join it one by one, the last first, then the stem.

    Of L parts below the head, the k-th opens at progress k·``over``/L (``when: schedule``), so that
    all train from ``over`` on; or whenever ``patience`` evaluations in a row brought no better
    score since the last opening (``when: stall``; the score is
    ``training.metric_for_best_model``, else the loss).

    Howard and Ruder 2018, "Universal language model fine-tuning" (ACL, arXiv 1801.06146): one more
    layer each epoch, together with discriminative rates (``learning_rates: [{decay: 0.385}]``) and
    a slanted triangular schedule. Lee et al. 2023 (arXiv 2210.11466, table 4): mean rank 4.0 among
    their methods against 2.7 for full fine-tuning. Cost: less than fine-tuning for the same steps,
    no gradients below what is open; memory as fine-tuning in the end.

    Keys:
        when: at fixed shares of training, or where the score stalls.
        over: the share of training from which everything is open (schedule).
        patience: evaluations without a better score (stall).
    """

    dynamic: ClassVar[bool] = True
    citation: ClassVar[str] = """@inproceedings{howard2018universal,
  title     = {Universal Language Model Fine-tuning for Text Classification},
  author    = {Howard, Jeremy and Ruder, Sebastian},
  booktitle = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  year      = {2018}, note = {arXiv:1801.06146}
}"""
    type: Literal["gradual"] = "gradual"
    when: Literal["schedule", "stall"] = "schedule"
    over: float = Field(0.5, gt=0, le=1)
    patience: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _no_idle_setting(self):
        idle = "patience" if self.when == "schedule" else "over"
        if idle in self.model_fields_set and getattr(self, idle) != type(self)._default(idle):
            raise ValueError(f"{idle} has no effect with when: {self.when}; leave one of them out")
        return self

    @classmethod
    def _default(cls, key: str) -> float:
        return cls.model_fields[key].default

    @property
    def watches(self) -> frozenset[str]:
        return frozenset({"score"} if self.when == "stall" else ())

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        below = parts(groups)
        if self.when == "stall":
            opened = signals.values.get("opened", 0)
        else:
            opened = min(len(below), phase(progress, self.over / len(below)))
        return names_of(below[len(below) - opened :])

    def observe(self, groups: LayerGroups, signals: Signals, moment: Moment) -> Signals:
        if moment.score is None:
            return signals
        seen = {"opened": 0, "best": -math.inf, "waited": 0, **signals.values}
        if moment.score > seen["best"]:
            seen |= {"best": moment.score, "waited": 0}
        else:
            seen["waited"] += 1
        if seen["waited"] >= self.patience and seen["opened"] < len(parts(groups)):
            seen |= {"opened": seen["opened"] + 1, "waited": 0}
        return Signals(seen, signals.seed)
