"""The optimizer of a TransferTrainer: rates of their own, and who has a part in its steps."""

from collections.abc import Sequence
from typing import Any

import torch

from hf_sft.errors import RecipeError, UserError, listing
from hf_sft.layer_groups import LayerGroups
from hf_sft.penalties.strength import Optimization
from hf_sft.training.plan_follower import PlanFollower
from hf_sft.training.pull import Pull
from hf_sft.training.rates import LearningRate, StepFactors, multipliers, regroup_


def divide_(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    rates: Sequence[LearningRate],
    follower: PlanFollower,
    pull: Pull,
) -> None:
    """Groups by learning rate, and hooks of penalties and plans; once, before the first step.

    Raises:
        UserError: a plug-in, or ``learning_rates``, needs groups that the optimizer cannot be given
            any more.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's own around it
    if pull.attached is optimizer:
        return
    names = {id(p): name for name, p in model.named_parameters()}
    by_name, by_origin = follower.policy.multiplies, pull.scales_steps
    if rates or by_name or by_origin:
        if any("initial_lr" in group for group in optimizer.param_groups) or optimizer.state:
            raise UserError(
                "learning_rates, auto-rgn and recadam divide the optimizer's groups anew, which an "
                "optimizer of your own with a scheduler, or after steps, cannot take. Leave out "
                "optimizers=, or give (optimizer_cls, settings) as optimizer_cls_and_kwargs=."
            )
        factors = multipliers(rates, follower.groups) if rates else {}

        def apart(name: str) -> tuple:
            return (name if by_name else None, by_origin and pull.shortened(name))

        regroup_(optimizer, names, factors, apart)
    moving = None
    if by_name:
        moving = StepFactors(optimizer, names, lambda n: follower.plan.multipliers.get(n, 1.0))
    pull.attach(optimizer)
    if moving is not None:
        optimizer.register_step_post_hook(moving.restore)


def expect_unused(trainer: Any) -> None:
    """Let DDP expect that parameters which trained when it was wrapped get no gradient.

    Raises:
        UserError: the caller has told it not to.
    """
    args = trainer.args
    if not trainer.freeze.dynamic:
        return
    replays = [
        getattr(args, f"{name}_checkpointing_kwargs", None) or {}
        for name in ("activation", "gradient")  # renamed in transformers 5.24
    ]
    reentrant = args.world_size > 1 and any(found.get("use_reentrant") for found in replays)
    if args.ddp_find_unused_parameters is False or args.ddp_static_graph or reentrant:
        raise UserError(
            f"freeze: {trainer.freeze.type} changes what trains, and DDP would wait for gradients "
            "that never come: leave out training.ddp_find_unused_parameters (or set it to true), "
            "training.ddp_static_graph and, in several processes, use_reentrant: true."
        )
    args.ddp_find_unused_parameters = True
    if trainer.accelerator.ddp_handler is not None:  # Trainer has built it already
        trainer.accelerator.ddp_handler.find_unused_parameters = True


def settle_strengths(trainer: Any) -> None:
    """λ of every weight prior; what has an infinite one never trains.

    Raises:
        RecipeError: a rule that fits nothing; a half-life that this optimizer does not give.
    """
    pull, follower, start = trainer.pull, trainer.follower, trainer.starting_point
    if any(prior.unresolved for prior in pull.weight_priors):
        pull.resolve(optimization(trainer))
    if not trainer.freeze.probing(0.0):
        _refuse_rules_on_new(pull, trainer.layer_groups)
    pinned = pull.pinned()
    follower.trainable -= pinned
    follower.ever_trains -= pinned
    for name in pinned & start.copies.keys():
        del start.copies[name]


def _refuse_rules_on_new(pull: Pull, groups: LayerGroups) -> None:
    for prior in pull.weight_priors:
        for number, rule in enumerate(prior.rules):
            fits = rule.selects(groups.parameters, groups)
            if fits and not fits & prior.anchored(pull.start):
                raise RecipeError(
                    f"penalty.rules.{number}: ({rule}) fits only {listing(sorted(fits), 3)}, and "
                    f"{prior.type} has no starting point for it. Parameters that are new are "
                    "decayed by penalty.head; leave the rule out."
                )


def optimization(trainer: Any) -> Optimization:
    """The facts about a trainer's optimizer that a strength may depend on."""
    args, steps = trainer.args, trainer.args.max_steps
    if steps < 1:
        if trainer.train_dataset is None:
            raise UserError(
                "penalty.half_life is a share of training: give the trainer a train_dataset, or "
                "max_steps."
            )
        steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
    if trainer.optimizer is not None:
        kind, settings = type(trainer.optimizer), trainer.optimizer.defaults
    else:
        given = trainer.optimizer_cls_and_kwargs
        kind, settings = given or trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    rate = float(settings.get("lr", args.learning_rate))
    momentum = float(settings.get("momentum", 0.0) or 0.0)
    return Optimization(rate, steps, momentum, adaptive=not issubclass(kind, torch.optim.SGD))
