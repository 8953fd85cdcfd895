"""One training of the evidence: settings in, the states to be measured out."""

import tempfile
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from hf_sft import LearningRate, TransferTrainer, wise_ft
from hf_sft.component import find
from hf_sft.freezing import FreezePolicy
from hf_sft.penalties import Penalty

QUIET = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "lr_scheduler_type": "linear",
}


def train(model: Any, rows: Any, settings: dict, seed: int, own: dict, head: float, **more: Any):
    """Train ``model`` in place; state -> its state dict.

    Args:
        model: as loaded from its source, with a new head.
        rows: the train set.
        settings: ``learning_rate``, and where wanted ``rate_factor`` on it, ``penalty`` (a list of
            blocks), ``freeze`` (a block), ``decay`` of the rate per layer, ``weight_decay``, and
            ``also`` (which states besides the final one).
        seed: of the order of the data and of dropout.
        own: TrainingArguments of this experiment.
        head: the learning rate of the new head, the same for every arm.
        more: arguments of TransferTrainer.
    """
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate = settings["learning_rate"] * settings.get("rate_factor", 1.0)
    also = settings.get("also", [])
    stops = Stops([float(name.split()[1]) for name in also if name.startswith("stop")])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            learning_rate=rate,
            seed=seed,
            weight_decay=settings.get("weight_decay", 0.0),
            **QUIET,
            **own,
        )
        TransferTrainer(
            model,
            args,
            train_dataset=rows,
            penalty=[block(Penalty, found) for found in settings.get("penalty", [])],
            freeze=block(FreezePolicy, settings["freeze"]) if "freeze" in settings else None,
            learning_rates=rates(head / rate, settings.get("decay")),
            callbacks=[stops],
            **more,
        ).train()
    found = {"final": model.state_dict()} | stops.states
    return found | on_the_way(start, model, also, more["fresh"])


def on_the_way(start: dict, model: Any, also: list[str], fresh: Any) -> dict:
    """The states of ``also`` between the source and the end."""
    alphas = {name: float(name.split()[1]) for name in also if name.startswith("wise")}
    return {
        name: wise_ft(start, model.state_dict(), alpha, fresh) for name, alpha in alphas.items()
    }


def block(base: type, settings: dict) -> Any:
    """A plug-in from its recipe block."""
    found = find(base, settings["type"])
    return found.model_validate(settings)


def rates(head: float, decay: float | None) -> list[LearningRate]:
    """The new head's own rate, and the decay from the last block down."""
    return [LearningRate(role="head", multiplier=head)] + (
        [LearningRate(decay=decay)] if decay else []
    )


class Stops(TrainerCallback):
    """Keeps the state at shares of the training: what stopping early would have given."""

    def __init__(self, shares: list[float]):
        self.shares, self.states = shares, {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for share in self.shares:
            if state.global_step == round(share * state.max_steps):
                kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                self.states[f"stop {share}"] = kept


@torch.no_grad()
def accuracy(model: Any, batches: list[dict]) -> float:
    """Share of right first answers; ``model`` is left in eval mode."""
    model.eval()
    right = sum(int((model(**b)["logits"].argmax(-1) == b["labels"]).sum()) for b in batches)
    return right / sum(len(b["labels"]) for b in batches)
