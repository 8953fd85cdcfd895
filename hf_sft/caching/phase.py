"""Which plan a frozen prefix is cached under, how long it holds, and what forbids it."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from hf_sft.caching.seam import NoCache
from hf_sft.freezing.base import Plan, Signals

SAMPLES = 500  # moments at which the rest of a plan over time is looked at


def refuse_unfit(trainer: Any) -> None:
    """Say what of a trainer's settings looks below the seam, or changes what is there.

    Raises:
        NoCache: something does.
    """
    args = trainer.args
    if trainer.train_dataset is None:
        raise NoCache("there is no data set to train on")
    if trainer.model_init is not None:
        raise NoCache("model_init builds another model when the training begins")
    if priors := trainer.source_pass.priors:
        raise NoCache(
            f"penalty {priors[0].type} compares what the whole model does; leave one of both out"
        )
    if args.torch_compile:
        raise NoCache("training.torch_compile has compiled the whole forward pass")
    if args.neftune_noise_alpha is not None:
        raise NoCache("training.neftune_noise_alpha adds noise below it")
    if args.n_gpu > 1:
        raise NoCache("DataParallel copies the model at every step; launch one process per GPU")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise NoCache("DeepSpeed and FSDP hold the layers in parts")


class Phase:
    """The plan of a trainer's policy from a moment on, as far as signals are known by then.

    Args:
        trainer: a TransferTrainer.
        checkpoint: where the training goes on; None where it begins.

    Attributes:
        trains: parameters that train now.
    """

    def __init__(self, trainer: Any, checkpoint: Path | None = None):
        self.trainer, self.resumed = trainer, checkpoint is not None
        self.start = 0.0 if checkpoint is None else _progress(checkpoint)
        self.plan = self._plan(self.start)
        self.trains = self.plan.trains & trainer.follower.trainable
        self._still = self.plan.still(trainer.model, trainer.layer_groups)

    def set_modes_(self, model: nn.Module) -> None:
        """The modes of a training step under this plan."""
        model.train()
        for module in self._still:
            module.training = False

    def rows_until(self, names: frozenset[str]) -> float:
        """How many rows are trained on until one of these parameters trains."""
        args, end = self.trainer.args, 1.0
        if self.trainer.freeze.dynamic:
            moments = (self.start + (1 - self.start) * k / SAMPLES for k in range(SAMPLES))
            end = next((at for at in moments if self._plan(at).trains & names), 1.0)
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        whole = args.num_train_epochs * len(self.trainer.train_dataset)
        return (end - self.start) * (args.max_steps * batch if args.max_steps > 0 else whole)

    def refuse_moved(self, names: frozenset[str]) -> None:
        """A checkpoint's weights are not in the model yet; they must be those it has.

        Raises:
            NoCache: some of these parameters have trained before the checkpoint.
        """
        follower = self.trainer.follower
        if self.resumed and names & (follower.ever_trains - follower.idle):
            raise NoCache("layers below it have trained before the checkpoint")

    def _plan(self, progress: float) -> Plan:
        signals: Signals = self.trainer.follower.signals
        return self.trainer.freeze.plan(self.trainer.layer_groups, progress, signals)


def _progress(checkpoint: Path) -> float:
    """Share of the steps that a checkpoint has done."""
    state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
    return state["global_step"] / max(1, state["max_steps"])
