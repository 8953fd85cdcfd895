"""TransferTrainer: the Hugging Face Trainer with a pull to the source and a freezing policy."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import Seq2SeqTrainer, Trainer

from hf_sft.caching.cached_training import CachedTraining
from hf_sft.freezing.base import FreezePolicy, Moment, TrainAll
from hf_sft.layer_groups import LayerGroups
from hf_sft.penalties.penalty import Penalty
from hf_sft.starting_point import StartingPoint, unmarked
from hf_sft.training import loss_scale, optimizer_setup, prior_data
from hf_sft.training.alike_lengths import AlikeBatches
from hf_sft.training.completed import chosen, is_last, take_up
from hf_sft.training.finite_steps import FiniteSteps
from hf_sft.training.fixed_draws import FixedDraws
from hf_sft.training.orderly_stop import OrderlyStop
from hf_sft.training.plan_follower import PlanFollower
from hf_sft.training.pull import Pull
from hf_sft.training.ragged_labels import RaggedLabels
from hf_sft.training.rates import LearningRate
from hf_sft.training.renamed_checkpoint import RenamedCheckpoints
from hf_sft.training.run_record import RunRecord
from hf_sft.training.running_loss import RunningLoss
from hf_sft.training.sharded_setup import settle_sharding
from hf_sft.training.source_pass import SourcePass
from hf_sft.training.tell_epoch import TellEpoch
from hf_sft.training.tracked import Tracked
from hf_sft.training.trainer_memory import Memory
from hf_sft.training.watch import Watch


class TransferMixin(
    CachedTraining, OrderlyStop, FiniteSteps, AlikeBatches, RaggedLabels, RenamedCheckpoints,
    FixedDraws,
):  # fmt: skip
    """Adds ``penalty`` and ``freeze`` to a Trainer class: ``class Mine(TransferMixin, Trainer)``.

    Order inside one optimizer step: forward and backward of every micro-batch, function priors in
    the loss; reduction; the pull λ·∂‖θ − θ⁰‖²/∂θ added to the gradients in place; clipping; the
    optimizer; proximal steps and step rules.

    Args (beside those of the Trainer, as they are):
        penalty: one or several penalties.
        freeze: which parameters train; None leaves ``requires_grad`` as the caller set it.
        learning_rates: factors on the learning rate for parts of the model, the first that fits.
        fresh: names of parameters that did not come from the source; None finds out.
        layer_groups: the model's order; None finds out.
        source: the source with its own head, for penalties on its function; None takes a copy of
            the model as it is now.
        rows: parameter -> how many of its first rows came from the source (embeddings that grew).
        cache: compute the frozen layers once per row; see `CachedTraining`.
        nonfinite: stop or skip where a loss or gradient is not finite; see `FiniteSteps`.

    Raises:
        UserError: a penalty or a policy under DeepSpeed, or one that FSDP2 leaves too little to.
        RecipeError: a rule that fits nothing.
        SourceError: resuming from a checkpoint that was trained from another source.
    """

    def __init__(
        self,
        *args: Any,
        penalty: Penalty | Sequence[Penalty] | None = None,
        freeze: FreezePolicy | None = None,
        learning_rates: Sequence[LearningRate] = (),
        fresh: Collection[str] | None = None,
        layer_groups: LayerGroups | None = None,
        source: torch.nn.Module | None = None,
        rows: dict[str, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        penalties = (penalty,) if isinstance(penalty, Penalty) else tuple(penalty or ())
        self.freeze = freeze or TrainAll()
        settle_sharding(self, penalties, self.freeze)
        optimizer_setup.expect_unused(self)
        # What the caller or the architecture froze (sinusoidal positions) stays frozen.
        trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        fresh = unmarked(self.model) if fresh is None else fresh
        self.layer_groups = layer_groups or LayerGroups.of(self.model, fresh=fresh)
        self.follower = PlanFollower(self.freeze, self.layer_groups, trainable, self.args.seed)
        self.starting_point = StartingPoint.of(
            self.model, fresh, self.follower.ever_trains, self.layer_groups, rows
        )
        self.pull = Pull(penalties, self.model, self.starting_point, lambda: self.progress)
        optimizer_setup.settle_strengths(self)
        self.source_pass = SourcePass(self.pull, self.model, self.layer_groups, source)
        self.source, self.rescales_loss = source, False
        self.items_in_step: loss_scale.Counts | None = None
        self.running_loss = RunningLoss()
        self.learning_rates = tuple(learning_rates)
        self.memory, self.watch = Memory(self), Watch(self)
        self.add_callback(RunRecord(self.starting_point.fingerprint))
        self.add_callback(self.memory)
        self.add_callback(TellEpoch(self))
        self.add_callback(Tracked(self))
        self.follow_plan()

    # ---- what is known ----

    @cached_property
    def honours_items(self) -> bool:
        """Whether the loss uses ``num_items_in_batch``; found out once, by trying."""
        return loss_scale.honours_item_count(self, super().compute_loss)

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, 0..1."""
        return self.state.global_step / max(1, self.state.max_steps)

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """The penalties, their strengths settled."""
        return self.pull.penalties

    @property
    def ever_trains(self) -> frozenset[str]:
        """Parameters that train at any time."""
        return self.follower.ever_trains

    @property
    def frozen(self) -> list[str]:
        """Parameters that never train, and the buffers of modules kept in eval mode."""
        return self.follower.frozen(self.model)

    def penalty_value(self) -> float:
        """Ω(θ; θ⁰) of all weight priors at the current weights."""
        return self.pull.value()

    # ---- Trainer's own hooks ----

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any):
        """As Trainer's; a checkpoint from another source is refused before anything is loaded."""
        checkpoint = chosen(resume_from_checkpoint, self.args.output_dir)
        self.memory.recall(checkpoint)
        loss_scale.settle_(self)
        if self.args.world_size > 1 and self.model_wrapped is self.model:
            # accelerate 1.15 takes a model that was evaluated for one that is wrapped: without DDP
            # the replicas would drift apart silently.
            self.model._is_accelerate_prepared = False
        if checkpoint is not None and is_last(self, checkpoint):
            return take_up(self, checkpoint)
        prior_data.prepare(self)
        self.source_pass.prepare(self)
        going_on = resume_from_checkpoint if checkpoint is None else str(checkpoint)
        return super().train(going_on, *args, **kwargs)

    def follow_plan(self) -> None:
        """Make the model follow the policy's plan now; a no-op while nothing changes."""
        if self.pull.model is not self.model:  # model_init has built another one
            self.pull.take(self.model)
            self.source_pass.take(self.model)
        self.follower.follow(self.model, self.progress, self.state.global_step)
        start = self.starting_point
        if self.freeze.probing(0.0) and not self.follower.plan.probing and not start.probed:
            start.probe_(self.model)

    def create_optimizer(self, model: torch.nn.Module | None = None):
        """All parameters that are not frozen for good by the caller, in fixed groups from step 0.

        The groups do not depend on what the plan opens when, so that a checkpoint always fits.
        """
        inner = self.model if model is None else model
        parameters = dict(inner.named_parameters())
        for name in self.follower.trainable & set(parameters):
            parameters[name].requires_grad_(True)
        optimizer = super().create_optimizer(*(() if model is None else (model,)))
        optimizer_setup.divide_(optimizer, inner, self.learning_rates, self.follower, self.pull)
        # DDP wraps after this: everything that will ever train must require a gradient then.
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.ever_trains)
        self.follower.reopen()
        return optimizer

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Ordinary weight decay, which pulls to 0, is off where a penalty pulls elsewhere."""
        names = super().get_decay_parameter_names(model)
        probes = self.freeze.probing(0.0)
        return [name for name in names if not self.pull.pulls(name, probes)]

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As Trainer's; anchors that the training itself has set lie beside a checkpoint."""
        super().save_model(output_dir, *args, **kwargs)
        self.memory.save_anchors(output_dir)

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        """As Trainer's; counts the labelled items of the whole step for `compute_loss`."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        parts = len(batches) * self.args.world_size
        weighs = self.rescales_loss or self.source_pass.priors
        self.items_in_step = loss_scale.count_step(self, batches) if weighs and parts > 1 else None
        return batches, items

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None):
        """As Trainer's; once per optimizer step, the pull is added to the reduced gradients."""
        self.follow_plan()
        loss = super().training_step(model, inputs, num_items_in_batch)
        loss = self.running_loss.add(loss, loss_scale.divisor(self, num_items_in_batch))
        if self.accelerator.sync_gradients:
            scaler = self.accelerator.scaler
            scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
            if "gradients" in self.freeze.watches:
                theta = dict(self.model.named_parameters())
                self.follower.observe(Moment(self.progress, theta, scale))
            self.watch.look(scale)
            self.pull.add_gradient_(scale)
        return loss

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any):
        """As Trainer's task loss, weighted by the micro-batch's share of the step's items.

        mean over the step = Σ_k mean_k · n_k/N. Trainer takes Σ_k mean_k / K, so the factor is
        n_k·K·P/N for K micro-batches and P processes: 1 whenever the parts are equal. Function
        priors, means over the micro-batch, are weighted likewise.
        """
        if not model.training:
            if self.args.world_size > 1 and not self.honours_items:
                # Before train(), Trainer 5.23 multiplies by it what was not divided by it.
                kwargs.pop("num_items_in_batch", None)
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        self.follower.hold()  # Trainer has just called model.train()
        batch = dict(inputs)  # a label smoother takes the labels out
        shares = loss_scale.shares_of_step(self, batch, kwargs.get("num_items_in_batch"))
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.rescales_loss and shares["item"] != 1.0:
            loss = loss * shares["item"]
        if self.source_pass.priors:
            held = self.source_pass.loss(batch, outputs, shares)
            self.running_loss.hold(held)
            loss = loss + held
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As Trainer's; beside the task ``loss``, what `Watch` has seen of the penalties."""
        if "loss" in logs:
            logs |= self.watch.logged(logs["loss"])
        super().log(logs, *args, **kwargs)


class TransferTrainer(TransferMixin, Trainer):
    """``transformers.Trainer`` with ``penalty`` and ``freeze``."""


class Seq2SeqTransferTrainer(TransferMixin, Seq2SeqTrainer):
    """``transformers.Seq2SeqTrainer`` with ``penalty`` and ``freeze``."""
