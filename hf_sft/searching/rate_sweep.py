"""A learning-rate range test on a trainer, which it leaves as it was."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from hf_sft.outlook import SAMPLES, Span, spans, steps
from hf_sft.searching.rate_range import RateRange, is_divergent, judge
from hf_sft.training import prior_data
from hf_sft.training.loss_scale import settle_, undisturbed


def sweep(trainer: Any, rates: Sequence[float]) -> RateRange:
    """Train a step at every rate, rising, until the loss diverges; then put everything back.

    The recipe's optimizer, penalty, accumulation and clipping; groups keep their factors on the
    rate. A policy over time is held in the phase in which most trains. Weights, buffers, modes,
    gradients and random state are afterwards what they were, bit for bit. Smith 2015, arXiv
    1506.01186.

    Args:
        trainer: a TransferTrainer that has not begun to train.
        rates: learning rates, as from ``rates_between``.
    """
    losses: list[float] = []
    with unchanged(trainer), undisturbed(trainer.model):
        settle_(trainer)
        prior_data.prepare(trainer)
        trainer.source_pass.prepare(trainer)
        phase = hold_widest_(trainer)
        optimizer = trainer.create_optimizer()
        shares = [group["lr"] / trainer.args.learning_rate for group in optimizer.param_groups]
        trainer.model.train()
        for rate, batches in zip(rates, _steps(trainer), strict=False):
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            losses.append(_step(trainer, optimizer, batches))
            if is_divergent(losses):
                break
    return replace(judge(rates, losses), phase=phase)


def hold_widest_(trainer: Any) -> str:
    """Keep a policy over time where most parameters train, the first of equals; it in words.

    A rate that suits the probe of a new head alone destroys the backbone that opens after it.
    """
    if not trainer.freeze.dynamic:
        return ""
    known, count = spans(trainer), min(steps(trainer), SAMPLES)
    sizes = {name: p.numel() for name, p in trainer.model.named_parameters()}

    def opened(span: Span) -> int:
        return sum(sizes[name] for name in span.plan.trains & trainer.follower.trainable)

    widest = max(known, key=opened)
    trainer.state.global_step, trainer.state.max_steps = round(widest.start * count), count
    most, every = opened(widest), sum(sizes[name] for name in trainer.ever_trains)
    share = "all that it ever trains" if most == every else f"{most:,} of {every:,} parameters"
    told = (
        f"measured with {share} open, as freeze {trainer.freeze.type} has it from "
        f"{100 * widest.start:.3g} to {100 * widest.end:.3g} % of the steps"
    )
    unseen = trainer.freeze.watches and most < every
    return told + ("; what it opens by signals was not measured." if unseen else ".")


@contextmanager
def unchanged(trainer: Any) -> Iterator[None]:
    """Put weights, buffers, gradients, who trains, and where the plan is, back afterwards."""
    model = trainer.model
    state = {name: tensor.detach().cpu().clone() for name, tensor in _tensors(model)}
    trains = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    kept = ("optimizer", "lr_scheduler", "rescales_loss", "running_loss",
            "model_accepts_loss_kwargs")  # fmt: skip
    given = {name: getattr(trainer, name) for name in kept}
    trainer.running_loss = type(trainer.running_loss)()
    follower, start, at = trainer.follower, trainer.starting_point, trainer.state
    memory, probed = follower.memory(), dict(start.probed)
    step, last = at.global_step, at.max_steps
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in _tensors(model):
                tensor.copy_(state[name])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains[name][0]).grad = trains[name][1]
        for name, value in given.items():
            setattr(trainer, name, value)
        at.global_step, at.max_steps = step, last
        follower.begin(memory)
        start.set_probed(probed)
        trainer.accelerator.free_memory()


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers, those that no checkpoint holds as well."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _steps(trainer: Any) -> Iterator[list[Any]]:
    """The micro-batches of step after step, the data over and over."""
    loader, size = trainer.get_train_dataloader(), trainer.args.gradient_accumulation_steps
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    while True:
        yield list(itertools.islice(endless, size))


def _step(trainer: Any, optimizer: torch.optim.Optimizer, batches: list[Any]) -> float:
    """One optimizer step; the mean loss of its batches before it."""
    size = trainer.current_gradient_accumulation_steps = len(batches)
    samples, items = trainer.get_batch_samples(iter(batches), size, trainer.args.device)
    total, last = 0.0, len(samples) - 1
    for number, batch in enumerate(samples):
        trainer.accelerator.gradient_state._set_sync_gradients(number == last)
        loss = trainer.training_step(trainer.model, batch, items)
        total += float(loss)
    most = trainer.args.max_grad_norm
    if most:
        held = [p for p in trainer.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(held, most)
    optimizer.step()
    trainer.model.zero_grad(set_to_none=True)
    return total
