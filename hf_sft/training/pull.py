"""Pull: every penalty of one training, each applied where its kind belongs in a step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_sft import shards
from hf_sft.penalties import FunctionPrior, Penalty, StepRule, WeightPrior
from hf_sft.penalties.strength import Optimization
from hf_sft.starting_point import StartingPoint
from hf_sft.training.moved_rows import MovedRows


class Pull:
    """The penalties of one training.

    Order inside an optimizer step: function priors in the loss; the gradient of weight priors after
    reduction and before clipping; the optimizer; proximal steps, then step rules, with the learning
    rate each parameter was moved with. A step that the loss scaler skips is followed by neither.

    Args:
        penalties: in the order in which they act.
        model, start: what trains, and θ⁰.
        progress: tells the share of training that is done, 0..1.
    """

    def __init__(
        self,
        penalties: Sequence[Penalty],
        model: nn.Module,
        start: StartingPoint,
        progress: Callable[[], float] = lambda: 0.0,
    ):
        self.penalties, self.start, self.progress = tuple(penalties), start, progress
        self.attached: torch.optim.Optimizer | None = None
        self.moved_rows: MovedRows | None = None
        self._seen: list[Any] = []
        self._rates_before: list[float] = []
        self.take(model)

    def take(self, model: nn.Module) -> None:
        """Act on this model from now on."""
        self.model = model
        for penalty in (*self.weight_priors, *self.step_rules):
            penalty.attach(model, self.start)

    @property
    def weight_priors(self) -> tuple[WeightPrior, ...]:
        """The penalties that are functions of the weights alone."""
        return tuple(p for p in self.penalties if isinstance(p, WeightPrior))

    @property
    def function_priors(self) -> tuple[FunctionPrior, ...]:
        """The penalties that compare what the model computes with what the source does."""
        return tuple(p for p in self.penalties if isinstance(p, FunctionPrior))

    @property
    def step_rules(self) -> tuple[StepRule, ...]:
        """The penalties that act around the optimizer's step."""
        return tuple(p for p in self.penalties if isinstance(p, StepRule))

    @property
    def theta(self) -> dict[str, Tensor]:
        """The parameters by name, a shared one once."""
        return shards.parameters(self.model)

    @property
    def scales_steps(self) -> bool:
        """Whether a prior shortens the optimizer's own step on what has an anchor."""
        return any(type(p).step_share is not WeightPrior.step_share for p in self.weight_priors)

    def shortened(self, name: str) -> bool:
        """Whether a prior shortens the optimizer's own step on this parameter."""
        priors = [p for p in self.weight_priors if type(p).step_share is not WeightPrior.step_share]
        return name not in self.start.fresh and any(
            self.start.coefficients(p).get(name, 0.0) > 0 for p in priors
        )

    def resolve(self, found: Optimization) -> None:
        """Turn half-lives and radii into λ."""
        self.penalties = tuple(
            p.resolved(found) if isinstance(p, WeightPrior) else p for p in self.penalties
        )

    def pinned(self) -> set[str]:
        """Parameters that a coefficient of ∞ freezes."""
        return set().union(*(prior.pinned(self.start) for prior in self.weight_priors))

    def strength(self, name: str) -> float:
        """Σ c_n over the weight priors, at the start of training."""
        return sum(p.schedule(0.0) * self.start.coefficients(p)[name] for p in self.weight_priors)

    def pulls(self, name: str, probes: bool = False) -> bool:
        """Whether a weight prior has a coefficient above 0 for this parameter.

        Where a policy ``probes`` the head first, it has one later; the answer is the same at any
        time, as a checkpoint must find the optimizer groups that it was written with.
        """
        if probes and name in self.start.fresh:
            return any(prior.strength > 0 for prior in self.weight_priors)
        return any(self.start.coefficients(p).get(name, 0.0) > 0 for p in self.weight_priors)

    def scheduled_strength(self) -> dict[str, float]:
        """``lambda`` as it is now, of the priors that change it over training; else nothing."""
        annealed = [p for p in self.weight_priors if type(p).schedule is not WeightPrior.schedule]
        now = sum(p.strength * p.schedule(self.progress()) for p in annealed)
        return {"lambda": now} if annealed else {}

    @torch.no_grad()
    def value(self) -> float:
        """Ω(θ; θ⁰) of all weight priors at the current weights."""
        theta, progress = self.theta, self.progress()
        return float(sum(p.value(theta, self.start, progress).item() for p in self.weight_priors))

    def add_gradient_(self, scale: float = 1.0) -> None:
        """Add ``scale`` · ∂Ω/∂θ of the priors in the gradient form; before clipping."""
        priors = [p for p in self.weight_priors if p.apply == "gradient"]
        if priors:
            theta, progress = self.theta, self.progress()
            moved = self.moved_rows.look(theta) if self.moved_rows else {}
            for prior in priors:
                if moved and type(prior).add_gradient_ is WeightPrior.add_gradient_:
                    prior.add_gradient_(theta, self.start, scale, progress, moved)
                else:
                    prior.add_gradient_(theta, self.start, scale, progress)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let proximal steps and step rules follow every step of ``optimizer``.

        Hooks of the optimizer itself: a step that a loss scaler skips does not call them.
        """
        self.attached = optimizer
        self.moved_rows = MovedRows(self.model, self.start, optimizer)
        late = [p for p in self.weight_priors if p.apply == "proximal"]
        if late or self.step_rules or self.scales_steps:
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_step)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        theta, progress = self.theta, self.progress()
        self._seen = [rule.before_step(theta, self.start, progress) for rule in self.step_rules]
        self._rates_before = [group["lr"] for group in optimizer.param_groups]
        if self.scales_steps:
            share = math.prod(p.step_share(progress) for p in self.weight_priors)
            shortened = {id(p) for name, p in theta.items() if self.shortened(name)}
            for group in optimizer.param_groups:
                if all(id(p) in shortened for p in group["params"]):
                    group["lr"] = group["lr"] * share

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates_before, strict=True):
            group["lr"] = rate
        if _skipped(optimizer):
            return
        theta, progress, rates = self.theta, self.progress(), self._rates(optimizer)
        priors = [p for p in self.weight_priors if p.apply == "proximal"]
        moved = self.moved_rows.look(theta, after=True) if priors else {}
        for prior in priors:
            if moved and type(prior).proximal_ is WeightPrior.proximal_:
                prior.proximal_(theta, self.start, rates, progress, moved)
            else:
                prior.proximal_(theta, self.start, rates, progress)
        for rule, seen in zip(self.step_rules, self._seen, strict=True):
            rule.after_step_(theta, self.start, seen, rates, progress)

    def _rates(self, optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
        names = {id(p): name for name, p in self.theta.items()}
        return {
            names[id(p)]: float(group["lr"])
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in names
        }


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimizer was called by a loss scaler only to leave the weights alone.

    GradScaler (torch 2.14) calls those that can skip by themselves, telling them in ``found_inf``.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
