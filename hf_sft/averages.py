"""The ``averaging`` block: the model that a run leaves is an average over its steps."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field

from hf_sft.component import Component
from hf_sft.weights.averaging import Averaging, Ema, Swa


class Average(Component):
    """Which average of the weights stands in for the last ones; found by its ``type``.

    It is taken beside the training, which it does not touch: evaluations on the way see the
    weights of their step, and what is measured and saved at the end is the average.
    """

    @abstractmethod
    def callback(self) -> Averaging:
        """What takes the average, beside one training."""


class ExponentialAverage(Average):
    """θ̄_t = d_t·θ̄_{t−1} + (1 − d_t)·θ_t, d_t = ``decay``, or min(decay, (1 + t)/(10 + t)).

    Keys:
        decay: d; near 1 for a long memory.
        warm_up: forget the start sooner, for short runs.
    """

    type: Literal["ema"] = "ema"
    decay: float = Field(0.999, ge=0, lt=1)
    warm_up: bool = True

    def callback(self) -> Averaging:
        return Ema(self.decay, self.warm_up)


class StochasticAverage(Average):
    """θ̄ = mean of θ_t over the last ``share_of_training`` (SWA, Izmailov et al. 2018).

    Keys:
        share_of_training: the steps at the end whose mean is taken.
    """

    citation: ClassVar[str] = """@inproceedings{izmailov2018averaging,
  title     = {Averaging Weights Leads to Wider Optima and Better Generalization},
  author    = {Izmailov, Pavel and Podoprikhin, Dmitrii and Garipov, Timur and Vetrov, Dmitry and
               Wilson, Andrew Gordon},
  booktitle = {UAI}, year = {2018}, note = {arXiv:1803.05407}
}"""
    type: Literal["swa"] = "swa"
    share_of_training: float = Field(0.25, gt=0, le=1)

    def callback(self) -> Averaging:
        return Swa(self.share_of_training)


def take_average_(trainer: Any) -> None:
    """Give the trained model the averages that were taken beside its training."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, Averaging):
            callback.copy_to_(trainer.model)


def averaging_conflicts(blocks: dict[str, Any]) -> list[str]:
    """What does not go together with an ``averaging`` block, one line each."""
    best = (blocks.get("training") or {}).get("load_best_model_at_end")
    if blocks.get("averaging") is None or not (best or blocks.get("early_stopping")):
        return []
    key = "early_stopping" if blocks.get("early_stopping") else "training.load_best_model_at_end"
    return [
        "averaging: the model that a run leaves is either an average or the best checkpoint. "
        f"Leave averaging or {key} out."
    ]
