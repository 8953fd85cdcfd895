"""How long the first optimizer steps of a recipe's run take, and their losses."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from hf_sft.errors import RecipeError
from hf_sft.training.out_of_memory import enough_memory

WARM = 2  # steps that do not count: memory is taken, kernels are chosen or compiled


@dataclass(frozen=True)
class Steps:
    """Seconds and the loss of each step that counts."""

    seconds: list[float]
    losses: list[float]


class _Enough(Exception):
    """Ends a training as soon as its steps are timed, before anything is evaluated or saved."""


class _Clock(TrainerCallback):
    """Times each step from its first forward pass to the end of the optimizer's."""

    def __init__(self, count: int):
        self.count = count + WARM
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = _now(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(_now(args.device) - self.begin)
        if len(self.seconds) == self.count:
            raise _Enough


def timed(build: Callable[[], Any], count: int) -> Steps:
    """The first steps of a training, as ``train`` takes them.

    Args:
        build: gives a TransferTrainer that has not begun; it is used up.
        count: how many steps count, after `WARM` that do not.

    Raises:
        RecipeError: the training is shorter.
    """
    torch.compiler.reset()  # else what was compiled for the models before counts for this one
    trainer, clock, losses = build(), _Clock(count), []
    trainer.add_callback(clock)
    step, parts = trainer.training_step, trainer.args.gradient_accumulation_steps

    def noted(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = noted
    try:
        with enough_memory(trainer):
            trainer.train()
        raise RecipeError(
            f"speed: the training has {len(clock.seconds)} steps, {clock.count} are wanted. Set "
            f"training.max_steps={clock.count}, or take a smaller --steps."
        )
    except _Enough:
        return Steps(clock.seconds[WARM:], [float(loss) for loss in losses[WARM * parts :]])
    finally:
        trainer.accelerator.free_memory()


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()
