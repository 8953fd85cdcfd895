"""TransferTrainer: the Hugging Face Trainer with a pull to the source and a freezing policy."""

import logging
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_sft.errors import UserError
from hf_sft.freezing.base import FreezePolicy, Plan, Signals, TrainAll
from hf_sft.layer_groups import LayerGroups
from hf_sft.loss_scale import count_items, honours_item_count, probe_batch, undisturbed
from hf_sft.penalties.base import Penalty, WeightPrior
from hf_sft.source_record import SourceRecord, refuse_other_source
from hf_sft.starting_point import StartingPoint, unmarked

log = logging.getLogger(__name__)


class TransferMixin:
    """Adds ``penalty`` and ``freeze`` to a Trainer class: ``class Mine(TransferMixin, Trainer)``.

    Order inside one optimizer step: forward and backward of every micro-batch, reduction, the pull
    λ·∂‖θ − θ⁰‖²/∂θ added to the gradients in place, clipping, the optimizer.

    Args (beside those of the Trainer, as they are):
        penalty: one or several penalties.
        freeze: which parameters train; None leaves ``requires_grad`` as the caller set it.
        fresh: names of parameters that did not come from the source; None finds out.
        layer_groups: the model's order; None finds out.

    Raises:
        UserError: DeepSpeed or FSDP together with a penalty or a policy.
        SourceError: resuming from a checkpoint that was trained from another source.
    """

    def __init__(
        self,
        *args: Any,
        penalty: Penalty | Sequence[Penalty] | None = None,
        freeze: FreezePolicy | None = None,
        fresh: Collection[str] | None = None,
        layer_groups: LayerGroups | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.penalties = (penalty,) if isinstance(penalty, Penalty) else tuple(penalty or ())
        self.freeze = TrainAll() if freeze is None else freeze
        if (self.penalties or type(self.freeze) is not TrainAll) and (
            self.is_deepspeed_enabled or self.is_fsdp_enabled
        ):
            raise UserError(
                "A penalty or a freezing policy under DeepSpeed or FSDP is not supported yet: "
                "their gradients are sharded or not ours to edit. Launch with DDP or one process."
            )
        # What the caller or the architecture froze (sinusoidal positions) stays frozen.
        self.trainable = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)
        fresh = unmarked(self.model) if fresh is None else fresh
        self.layer_groups = layer_groups or LayerGroups.of(self.model, fresh=fresh)
        self.ever_trains = self.freeze.ever_trains(self.layer_groups) & self.trainable
        self.starting_point = StartingPoint.of(self.model, fresh=fresh, trains=self.ever_trains)
        self.rescales_loss = False
        self._items_in_step: int | None = None
        self._plan: Plan | None = None
        self._still: list[torch.nn.Module] = []
        self._planned_model: torch.nn.Module | None = None
        self.add_callback(SourceRecord(self.starting_point.fingerprint))
        self.follow_plan(0.0)

    # ---- the freezing plan ----

    def follow_plan(self, progress: float) -> None:
        """Make the model follow the plan at ``progress``; a no-op while nothing changes."""
        plan = self.freeze.plan(self.layer_groups, progress, Signals())
        if plan == self._plan and self._planned_model is self.model:
            return
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in plan.trains and name in self.trainable)
        self._plan, self._planned_model = plan, self.model
        self._still = plan.still(self.model, self.layer_groups)

    @cached_property
    def honours_items(self) -> bool:
        """Whether the loss uses ``num_items_in_batch``; found out once, by trying."""
        return honours_item_count(self, super().compute_loss)

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, 0..1."""
        return self.state.global_step / max(1, self.state.max_steps)

    @property
    def frozen(self) -> list[str]:
        """Parameters that never train, and the buffers of modules kept in eval mode."""
        names = [n for n, _ in self.model.named_parameters() if n not in self.ever_trains]
        still = {id(buffer) for module in self._still for buffer in module.buffers(recurse=False)}
        return names + [name for name, b in self.model.named_buffers() if id(b) in still]

    # ---- Trainer's own hooks ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As Trainer's; a checkpoint from another source is refused before anything is loaded."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if isinstance(resume_from_checkpoint, str):
            refuse_other_source(Path(resume_from_checkpoint), self.starting_point.fingerprint)
        self.rescales_loss = not self.honours_items
        if self.rescales_loss and self.model_accepts_loss_kwargs:
            # It takes num_items_in_batch and ignores it: Trainer would then neither divide the loss
            # by the accumulation steps nor undo its own factor num_processes (INTEGRATION 1.2).
            self.model_accepts_loss_kwargs = False
            log.info(
                "%s ignores num_items_in_batch: its loss is weighted here, so that one step is the "
                "same for any accumulation and number of processes.",
                type(self.model).__name__,
            )
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            # accelerate 1.15 takes a model that was evaluated for one that is wrapped: without DDP
            # the replicas would drift apart silently.
            self.model._is_accelerate_prepared = False
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None):
        """All parameters that are not frozen for good by the caller, in fixed groups from step 0.

        The groups do not depend on the policy, so that a checkpoint always fits.
        """
        parameters = dict((self.model if model is None else model).named_parameters())
        for name in self.trainable & set(parameters):
            parameters[name].requires_grad_(True)
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        # Wrapped for DDP after this: everything that will ever train must require a gradient then.
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.ever_trains)
        self._plan = None
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Ordinary weight decay, which pulls to 0, is off where a penalty pulls elsewhere."""
        fresh = self.starting_point.fresh
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if not any(p.coefficient(name, name in fresh, 0.0) > 0 for p in self.weight_priors)
        ]

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        """As Trainer's; counts the labelled items of the whole step for `compute_loss`."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        parts = len(batches) * self.args.world_size
        self._items_in_step = self._count(batches) if self.rescales_loss and parts > 1 else None
        return batches, items

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None):
        """As Trainer's; once per optimizer step, the pull is added to the reduced gradients."""
        self.follow_plan(self.progress)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.add_pull_()
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any):
        """As Trainer's task loss, weighted by the micro-batch's share of the step's items.

        mean over the step = Σ_k mean_k · n_k/N. Trainer takes Σ_k mean_k / K, so the factor is
        n_k·K·P/N for K micro-batches and P processes: 1 whenever the parts are equal.
        """
        if not model.training:
            if self.args.world_size > 1 and not self.honours_items:
                # Trainer 5.23 would multiply by the number of processes what was not divided by it
                # (before train(), which turns that off).
                kwargs.pop("num_items_in_batch", None)
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        for module in self._still:  # Trainer has just called model.train()
            module.training = False
        items = count_items(self, inputs) if self._items_in_step else None
        result = super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if not items:
            return result
        parts = self.current_gradient_accumulation_steps * self.args.world_size
        factor = items * parts / self._items_in_step
        if factor == 1.0:
            return result
        return (result[0] * factor, result[1]) if return_outputs else result * factor

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's; beside the task ``loss``, ``penalty`` now and their sum ``objective``."""
        if "loss" in logs and self.weight_priors:
            logs["penalty"] = self.penalty_value()
            logs["objective"] = logs["loss"] + logs["penalty"]
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def try_one_batch(self) -> None:
        """Send two rows of the train set through the model; RNG and modes stay as they were."""
        with undisturbed(self.model):
            self.model.eval()
            super().compute_loss(self.model, probe_batch(self, rows=2))

    # ---- the pull ----

    @property
    def weight_priors(self) -> tuple[WeightPrior, ...]:
        """The penalties that are functions of the weights alone."""
        return tuple(p for p in self.penalties if isinstance(p, WeightPrior))

    def add_pull_(self) -> None:
        """Add the gradient of every weight prior, in the gradients' own (fp16) scale."""
        if not self.weight_priors:
            return
        scaler = self.accelerator.scaler
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        theta = dict(self.model.named_parameters())
        for prior in self.weight_priors:
            prior.add_gradient_(theta, self.starting_point, scale, self.progress)

    @torch.no_grad()
    def penalty_value(self) -> float:
        """Ω(θ; θ⁰) of all weight priors at the current weights."""
        theta = dict(self.model.named_parameters())
        values = (p.value(theta, self.starting_point, self.progress) for p in self.weight_priors)
        return float(sum(value.item() for value in values))

    # ---- helpers ----

    def _count(self, batches: list) -> int:
        items = sum(count_items(self, batch) for batch in batches)
        if self.args.world_size == 1:
            return items
        total = torch.tensor([items], device=self.args.device)
        return int(self.accelerator.gather(total).sum())


class TransferTrainer(TransferMixin, Trainer):
    """``transformers.Trainer`` with ``penalty`` and ``freeze``."""


class Seq2SeqTransferTrainer(TransferMixin, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with ``penalty`` and ``freeze``."""
