"""What a TransferTrainer remembers across checkpoints: signals, anchors it set, sums of the run."""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hf_sft.errors import UserError, listing
from hf_sft.freezing.base import Moment
from hf_sft.training.rates import keep_ratios_
from hf_sft.training.run_record import ANCHORS, RunRecord, recorded_memory, refuse_other_source
from hf_sft.training.running_loss import RunningLoss, diverged
from hf_sft.weights.averaging import Averaging


class Memory(TrainerCallback):
    """Watches steps and evaluations of one trainer, and gives its checkpoints what they need."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.seconds, self._since = 0.0, None

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self._since = time.perf_counter()
        if self.trainer.learning_rates:
            keep_ratios_(getattr(lr_scheduler, "scheduler", lr_scheduler))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, RunRecord):  # Trainer may have built another one on resuming
                callback.collect = self.collect

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds, self._since = self.elapsed(), None

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.running_loss.step_done()
        self._refuse_to_save_divergence(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._refuse_to_save_divergence(args, state, control)

    def _refuse_to_save_divergence(self, args, state, control):
        """A checkpoint to go on from holds numbers."""
        if control.should_save:
            parameters = self.trainer.model.parameters()
            if not all(bool(torch.isfinite(p).all()) for p in parameters if p.requires_grad):
                raise diverged("The weights are", state.global_step, args)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        trainer = self.trainer
        if not (trainer.is_in_train and "score" in trainer.freeze.watches):
            return
        found = {key: value for key, value in (metrics or {}).items() if key.startswith("eval_")}
        score = watched(found, args, trainer.eval_dataset)
        if score is not None:
            trainer.follower.observe(Moment(trainer.progress, score=score))

    def elapsed(self) -> float:
        """Seconds of training in all legs of the run."""
        now = 0.0 if self._since is None else time.perf_counter() - self._since
        return self.seconds + now

    def collect(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        callbacks = self.trainer.callback_handler.callbacks
        return {
            "plan": self.trainer.follower.memory(),
            "loss_sum": float(self.trainer.running_loss.total),
            "skipped_steps": self.trainer.skipped_steps,
            "files_beside": [c.file for c in callbacks if isinstance(c, Averaging)],
            "seconds": self.elapsed(),
        }

    def recall(self, checkpoint: Path | None) -> None:
        """Take up what a checkpoint knows, or begin anew.

        Raises:
            SourceError: the checkpoint was trained from another source.
        """
        trainer, memory, probed = self.trainer, {}, {}
        if checkpoint is not None:
            refuse_other_source(checkpoint, trainer.starting_point.fingerprint)
            memory = recorded_memory(checkpoint)
            if (checkpoint / ANCHORS).is_file():
                probed = load_file(checkpoint / ANCHORS)
        if "score" in trainer.freeze.watches and trainer.args.eval_strategy == "no":
            raise UserError(
                f"freeze: {trainer.freeze.type} waits for scores of evaluations: set "
                "training.eval_strategy to epoch or steps."
            )
        trainer.starting_point.set_probed(probed)
        trainer.follower.begin(memory.get("plan"))
        trainer.running_loss = RunningLoss(memory.get("loss_sum", 0.0))
        trainer.skipped_steps = list(memory.get("skipped_steps", []))
        self.seconds = memory.get("seconds", 0.0)

    def save_anchors(self, folder: str | None) -> None:
        """Put anchors that the training has set beside a checkpoint's weights."""
        probed = self.trainer.starting_point.probed
        if folder is not None and probed and self.trainer.args.should_save:
            tensors = {name: value.cpu().contiguous() for name, value in probed.items()}
            save_file(tensors, Path(folder) / ANCHORS)


def watched(metrics: dict[str, float], args: Any, data: Any) -> float | None:
    """The metric that is to be best, higher is better; None after another evaluation.

    Raises:
        UserError: no evaluation gives it.
    """
    key = "eval_" + (args.metric_for_best_model or "loss").removeprefix("eval_")
    if key in metrics:
        better = args.greater_is_better if args.metric_for_best_model else False
        return float(metrics[key]) if better else -float(metrics[key])
    others = [f"eval_{name}_" for name in data] if isinstance(data, dict) else []
    if not metrics or any(key.startswith(name) for name in others):
        return None  # under a prefix of the caller's; of another of several data sets
    names = listing(name.removeprefix("eval_") for name in metrics)
    raise UserError(
        f"training.metric_for_best_model: freeze waits for {key.removeprefix('eval_')!r}, but an "
        f"evaluation gives: {names}."
    )
