"""Tracked: drift and plan of every layer group, told to whatever listens to the log."""

import re
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from hf_sft.layer_groups import LayerGroup
from hf_sft.penalties.lora_adapters import deltas
from hf_sft.training.sharded_setup import parameters_are_known

NOTEBOOK = "NotebookProgressCallback"  # prints a table; importing it wants IPython


class Tracked(TrainerCallback):
    """Beside each logged loss, tell trackers how far every layer group is and what it does now.

    Trackers are TensorBoard and the others of ``report_to``, and any callback with an ``on_log``
    but those that print. They get, per layer group, ``drift/…`` ‖θ − θ⁰‖ and
    ``relative_drift/…`` ‖θ − θ⁰‖/‖θ⁰‖ of what came from the source; ``trains/…`` how many
    parameters train in this step; ``lambda/…``, under a weight prior, and ``learning_rate/…``
    the largest among them. Cost where there is a tracker: a pass over θ and θ⁰ per logged step,
    under FSDP2 a collective; none without. Nothing where parameters have no names or no weights:
    under DeepSpeed, FSDP1, and settings of FSDP2 that penalties refuse.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any
    ) -> None:
        """After what was logged has reached the same callbacks."""
        trackers = self.trackers() if "loss" in (logs or {}) else []
        if trackers:
            found = {**self.drift(), **self.plan()}
            for tracker in trackers:
                tracker.on_log(args, state, control, logs=dict(found), **kwargs)

    def trackers(self) -> list[TrainerCallback]:
        """The callbacks that hear the log, but those that print it."""
        if not parameters_are_known(self.trainer):
            return []
        return [
            callback
            for callback in self.trainer.callback_handler.callbacks
            if type(callback).on_log is not TrainerCallback.on_log
            and not isinstance(callback, Tracked | PrinterCallback | ProgressCallback)
            and not any(cls.__name__ == NOTEBOOK for cls in type(callback).__mro__)
        ]

    def drift(self) -> dict[str, float]:
        """How far each layer group is from the source; nothing of what is new."""
        trainer = self.trainer
        groups, added = trainer.layer_groups, deltas(trainer.model)
        return {
            f"{key}/{key_of(group['name'])}": group[key]
            for group in trainer.starting_point.distance(trainer.model, groups, added)
            for key in ("drift", "relative_drift")
            if group[key] is not None
        }

    def plan(self) -> dict[str, float]:
        """What each layer group does now."""
        rates = {
            id(parameter): group["lr"]
            for group in self.trainer.optimizer.param_groups
            for parameter in group["params"]
        }
        found: dict[str, float] = {}
        for group in self.trainer.layer_groups:
            found |= self._group(group, rates)
        return found

    def _group(self, group: LayerGroup, rates: dict[int, float]) -> dict[str, float]:
        trainer, name = self.trainer, key_of(group.name)
        theta = trainer.pull.theta
        trains = [n for n in group.parameters if n in theta and theta[n].requires_grad]
        found = {
            f"trains/{name}": sum(theta[n].numel() for n in trains),
            f"learning_rate/{name}": max((rates.get(id(theta[n]), 0.0) for n in trains), default=0),
        }
        if priors := trainer.pull.weight_priors:
            known = [(p.schedule(trainer.progress), trainer.starting_point.coefficients(p))
                     for p in priors]  # fmt: skip
            pulls = (sum(share * c.get(n, 0.0) for share, c in known) for n in trains)
            found[f"lambda/{name}"] = max(pulls, default=0.0)
        return found


def key_of(name: str) -> str:
    """A layer group's name with the letters that every tracker takes."""
    return re.sub(r"[^\w.-]+", "_", name)
