"""Sharded trainings: what FSDP2 can train with a pull, and what is refused, with the reason."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hf_sft.errors import UserError, listing
from hf_sft.freezing import FreezePolicy, TrainAll
from hf_sft.penalties import FunctionPrior, Mixout, Penalty, WeightPrior

log = logging.getLogger(__name__)
NOT_ACTIVE = (
    "FSDP was asked for and is not active on %s: accelerate shards on accelerators only. Training "
    "runs %s, every process with the whole model."
)


def settle_sharding(trainer: Any, penalties: Sequence[Penalty], policy: FreezePolicy) -> None:
    """Say that a sharding that was asked for is not there; refuse what cannot be trained sharded.

    Raises:
        UserError: penalties or a policy, and they cannot act on what each process holds.
    """
    if asked_for_fsdp(trainer.args) and not trainer.is_fsdp_enabled:
        how = "as DDP" if trainer.args.world_size > 1 else "in one process"
        log.warning(NOT_ACTIVE, trainer.args.device.type.upper(), how)
    if not penalties and type(policy) is TrainAll:
        return
    if trainer.is_deepspeed_enabled:
        raise UserError(
            "A penalty or a freezing policy under DeepSpeed is not supported, at any ZeRO stage: "
            "accelerate takes the optimizer's step inside the backward pass, so that there is no "
            "moment at which the pull could join the reduced gradients before clipping. Launch "
            "with FSDP2 (recipes/accelerate/fsdp2.yaml), DDP or one process."
        )
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        if wrong := [*_layout(plugin), *_methods(penalties, policy)]:
            raise UserError("Under FSDP:\n" + "\n".join(f"- {line}" for line in wrong))


def asked_for_fsdp(args: Any) -> bool:
    """Whether the launcher's configuration, or ``training.fsdp``, asks for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def parameters_are_known(trainer: Any) -> bool:
    """Whether θ and θ⁰ can be looked at by name while ``trainer`` trains, gathered or not."""
    if trainer.is_deepspeed_enabled:
        return False
    return not (trainer.is_fsdp_enabled and any(_layout(trainer.accelerator.state.fsdp_plugin)))


def _layout(plugin: Any) -> Iterator[str]:
    """What of accelerate's settings a pull cannot live with."""
    if plugin.fsdp_version != 2:
        yield "fsdp_version: 1 flattens the parameters; penalties need them by name. Set 2."
    if plugin.cpu_ram_efficient_loading:
        yield (
            "fsdp_cpu_ram_efficient_loading leaves the weights of all processes but the first "
            "unread, and each of them remembers its part of θ⁰. Set it to false."
        )
    if plugin.activation_checkpointing:
        yield (
            "fsdp_activation_checkpointing renames the parameters. Set it to false, and "
            "training.gradient_checkpointing to true."
        )


def _methods(penalties: Sequence[Penalty], policy: FreezePolicy) -> Iterator[str]:
    """Which methods need more than the rows that a process holds."""
    if wrong := [p.type for p in penalties if isinstance(p, FunctionPrior)]:
        yield f"penalty: {listing(wrong)} copies the whole source to every process."
    if any(isinstance(p, Mixout) for p in penalties):
        yield "penalty: mixout mixes whole weights with the whole of θ⁰ in the forward pass."
    joins = [
        p
        for p in penalties
        if isinstance(p, WeightPrior) and type(p).add_gradient_ is not WeightPrior.add_gradient_
    ]
    if joins:
        yield f"penalty: {listing(p.type for p in joins)} multiplies factors that lie apart."
    if policy.dynamic:
        yield f"freeze: {policy.type} changes what trains, and FSDP divides it once."
