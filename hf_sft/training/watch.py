"""Watch: what is logged beside the loss, about the penalties and how they stand to the task."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_sft.penalties import WeightPrior
from hf_sft.penalties.terms import Term, chunks, fresh_difference
from hf_sft.shards import added_up, first_rows, local
from hf_sft.starting_point import StartingPoint


class Watch:
    """Looks at the gradients of the steps that Trainer will log, and changes nothing.

    ``penalty`` Ω now, and what function priors have added; ``objective`` its sum with the loss.
    ``pull_to_gradient`` ‖∂Ω/∂θ‖/‖g‖ over the parameters that weight priors act on: from 1 on, the
    pull decides where they go. ``gradient_drift_cosine`` cos(g, θ − θ⁰) over what came from the
    source: below 0 the task leads further away, above 0 it leads back (the sign is SPD's signal).
    ``lambda``, only under a prior whose strength follows a schedule: what it is by now.

    g is the reduced gradient before pull and clipping, function priors in it. Without a penalty
    there are none of these. Cost, in steps that are logged: one more pass over θ, θ⁰ and g, in
    chunks.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._seen: dict[str, Tensor] = {}

    def look(self, scale: float) -> None:
        """Measure this step if it will be logged; gradients are ``scale`` times themselves."""
        if self.trainer.pull.penalties and self._will_be_logged():
            self._seen = self._measure(scale)

    def logged(self, loss: float) -> dict[str, float]:
        """What stands beside ``loss`` in the log; a collective on all processes."""
        trainer, pull = self.trainer, self.trainer.pull
        found, self._seen = {name: float(value) for name, value in self._seen.items()}, {}
        found = {name: value for name, value in found.items() if math.isfinite(value)}
        if pull.weight_priors or pull.function_priors:
            held = trainer.running_loss.held_mean(trainer.accelerator)
            penalty = trainer.penalty_value() + held
            found |= pull.scheduled_strength()
            return {"penalty": penalty, "objective": loss + penalty, **found}
        return found

    def _will_be_logged(self) -> bool:
        """As transformers 5.24's DefaultFlowCallback decides after the step."""
        args, state = self.trainer.args, self.trainer.state
        step = state.global_step + 1
        if step == 1 and args.logging_first_step:
            return True
        if args.logging_strategy == "steps":
            return step % state.logging_steps == 0
        last = self.trainer.accelerator.gradient_state.end_of_dataloader
        return args.logging_strategy == "epoch" and last

    @torch.no_grad()
    def _measure(self, scale: float) -> dict[str, Tensor]:
        """Tensors that stay on their device: nothing waits for them before the log does."""
        pull, sums, divided, whole = self.trainer.pull, _Sums(), _Sums(), self._joined()
        for name, theta in pull.theta.items():
            if theta.grad is not None:
                own = divided if isinstance(theta, DTensor) else sums
                own.like = theta
                for part in self._parts(name, theta):
                    own.add(part, pull.start)
                if name in whole:
                    sums.task = sums.task + dot(theta.grad, theta.grad)
                    sums.pulled = sums.pulled + dot(whole[name], whole[name])
        sums.join(divided)
        found = {}
        if torch.is_tensor(sums.pulled):
            found["pull_to_gradient"] = scale * (sums.pulled / sums.task).sqrt()
        acts = torch.is_tensor(sums.pulled) or pull.function_priors or pull.step_rules
        if acts and torch.is_tensor(sums.drift):
            found["gradient_drift_cosine"] = sums.along / (sums.grads * sums.drift).sqrt()
        return found

    @property
    def _joins(self) -> bool:
        """Whether a prior couples parameters, as the factors of LoRA are."""
        priors = self.trainer.pull.weight_priors
        return any(type(p).add_gradient_ is not WeightPrior.add_gradient_ for p in priors)

    def _joined(self) -> dict[str, Tensor]:
        """∂Ω/∂θ by name where a prior couples parameters; costs a copy of the gradients."""
        if not self._joins:
            return {}
        pull = self.trainer.pull
        names = [n for n, p in pull.theta.items() if p.grad is not None and pull.pulls(n)]
        alone = {name: pull.theta[name].detach().requires_grad_() for name in names}
        for theta in alone.values():
            theta.grad = torch.zeros_like(theta)
        for prior in pull.weight_priors:
            prior.add_gradient_(alone, pull.start, 1.0, pull.progress())
        return {name: theta.grad for name, theta in alone.items()}

    def _parts(self, name: str, theta: Tensor) -> Iterable["_Part"]:
        """A parameter, or its rows from the source and those it grew by, with what pulls them."""
        pull, start, found = self.trainer.pull, self.trainer.starting_point, {}
        if name in start.copies:
            rows = slice(first_rows(start.rows[name], theta)) if name in start.rows else ...
            now, anchor, grad = local(theta), start.anchor(name, theta), local(theta.grad)
            found[True] = _Part(now[rows], anchor[rows], grad[rows], True, [])
        for prior in [] if self._joins else pull.weight_priors:
            for term in prior.terms({name: theta}, start, pull.progress()):
                new = _Part(term.theta, term.anchor, term.grad, False, [])
                found.setdefault(term.anchor is not None, new).terms.append((prior, term))
        return found.values()


@dataclass(frozen=True)
class _Part:
    """θ_n, a_n and g_n of one shape; whether a_n is θ⁰_n; the terms of the priors on them."""

    theta: Tensor
    anchor: Tensor | None
    grad: Tensor
    of_source: bool
    terms: list[tuple[WeightPrior, Term]]


class _Sums:
    """Squared norms and a product, in float64 on the parameters' device; 0.0 before the first."""

    def __init__(self):
        self.task = self.pulled = self.along = self.grads = self.drift = 0.0
        self.like: Tensor | None = None  # one of the parameters it sums over

    def join(self, divided: "_Sums") -> None:
        """Add what all processes have found of divided parameters, in one reduction."""
        known = {n: v for n, v in vars(divided).items() if n != "like" and torch.is_tensor(v)}
        if known:
            total = added_up([torch.stack(list(known.values()))], [divided.like])[0]
            for name, value in zip(known, total, strict=True):
                setattr(self, name, getattr(self, name) + value)

    def add(self, part: _Part, start: StartingPoint) -> None:
        """Go through a part once, chunk by chunk, as the pull itself does."""
        weights = [prior._weight(term, start) for prior, term in part.terms]
        for p, a, g, *w in chunks(part.theta, part.anchor, part.grad, *weights):
            d, size = fresh_difference(p, a), dot(g, g)
            if part.of_source:
                self.grads, self.drift = self.grads + size, self.drift + dot(d, d)
                self.along = self.along + dot(g, d)
            if part.terms:
                total = summed(part.terms, d, w)
                self.task, self.pulled = self.task + size, self.pulled + dot(total, total)


def summed(terms: list[tuple[WeightPrior, Term]], d: Tensor, weights: list) -> Tensor:
    """Σ c·∂ω/∂d of all priors on a chunk; ``d`` may be overwritten."""
    found = []
    for (prior, term), weight in zip(terms, weights, strict=True):
        direction, factor = prior.slope(d if len(terms) == 1 else d.clone(), weight)
        found.append(direction * (factor * term.c))
    return found[0] if len(found) == 1 else torch.stack(found).sum(0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of tensors of one shape."""
    found = torch.dot(a.flatten().float(), b.flatten().float())
    return found if found.device.type == "mps" else found.double()  # Apple's GPUs have no float64
