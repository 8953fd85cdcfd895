"""WeightPrior: a penalty that is a function of the weights alone."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hf_sft.errors import RecipeError
from hf_sft.penalties.penalty import Parameters, Penalty
from hf_sft.penalties.square import Square
from hf_sft.penalties.strength import Optimization, StrengthRule, derived, from_alpha, one_strength
from hf_sft.penalties.terms import Term, chunks, difference, fresh_difference, of_rows, part
from hf_sft.selection import first_match
from hf_sft.shards import added_up, first_rows, local
from hf_sft.starting_point import StartingPoint

DECAY = Square()  # of what is new, under every prior


class WeightPrior(Penalty):
    """Ω(θ; θ⁰) = Σ_n c_n·ω(θ_n − θ⁰_n) + head·‖θ_new‖².

    A method gives ω by three functions of d, of one shape with θ_n: ``density`` (the formula, the
    reference for the others), ``slope`` (its gradient) and ``shrink`` (its proximal map).

    Two forms, one minimiser under plain SGD and different algorithms under Adam:

    * ``apply: gradient``: c·∂ω/∂θ joins the reduced gradients once per optimizer step, before
      clipping, in place, without autograd: the prior of a MAP estimate.
    * ``apply: proximal``: after the step θ̂, θ = argmin_x ½‖x − θ̂‖² + η·c·ω(x − a): θ⁰ as λ → ∞.

    Attributes:
        squared: ω is a square, so that alpha = 2λ, half-lives and radii have a meaning.

    Keys:
        apply: in the gradients before clipping, or as a proximal step after the optimizer's.
        lambda: the strength λ, the formula's own, without ½.
        alpha: 2λ, in place of lambda (squared priors).
        half_life: the share of training in which the pull alone halves θ − θ⁰, likewise.
        radius: the largest |θ − θ⁰| under Adam with the proximal form, likewise.
        head: coefficient of ‖θ_new‖²; a head probed first (LP-FT) has its probed value for θ⁰ then.
        rules: [{role, name or depth, lambda}, …], the first that fits wins; inf freezes.
    """

    default_lambda: ClassVar[float] = 0.01
    squared: ClassVar[bool] = True
    apply: Literal["gradient", "proximal"] = "gradient"
    lambda_: float | None = Field(None, alias="lambda", ge=0, allow_inf_nan=False)
    alpha: float | None = Field(None, ge=0, allow_inf_nan=False)
    half_life: float | None = Field(None, gt=0, allow_inf_nan=False)
    radius: float | None = Field(None, gt=0, allow_inf_nan=False)
    head: float = Field(0.0, ge=0, allow_inf_nan=False)
    rules: tuple[StrengthRule, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_strength(cls, data: Any) -> Any:
        if not isinstance(data, dict) or one_strength(data, cls.squared):
            return data
        return {**data, "lambda": cls.default_lambda}

    # ---- the formula ----

    @abstractmethod
    def density(self, d: Tensor, weight: Tensor | None = None) -> Tensor:
        """ω(d) as a scalar tensor (); differentiable. ``weight``: of d's shape, see `metric`."""

    @abstractmethod
    def slope(self, d: Tensor, weight: Tensor | None = None) -> tuple[Tensor, float]:
        """∂ω/∂d as (tensor, factor): their product; ``d`` may be overwritten."""

    @abstractmethod
    def shrink(self, d: Tensor, k: float, weight: Tensor | None = None) -> Tensor:
        """argmin_x ½‖x − d‖² + k·ω(x); ``d`` may be overwritten."""

    def draw_(self, p: Tensor, a: Tensor | None, k: float, weight: Tensor | None = None) -> None:
        """p ← argmin_x ½‖x − p‖² + k·ω(x − a), a = 0 for None."""
        kept = self.shrink(fresh_difference(p, a), k, weight)
        p.copy_(kept if a is None else kept.add_(a))

    def attach(self, model: nn.Module, start: StartingPoint) -> None:
        """Look at the model that will train; called when a training is set up."""

    def prepare(self, model: nn.Module, start: StartingPoint, data: Any) -> None:
        """Find out at θ⁰ what the formula needs to know of the data; called before the first step.

        ``data``: a `hf_sft.training.prior_data.PriorData`.
        """

    def metric(self, name: str, start: StartingPoint) -> Tensor | None:
        """Elementwise weights of ω for one parameter, of its shape; None for all ones."""
        return None

    def schedule(self, progress: float) -> float:
        """Factor on every c_n of a parameter with an anchor, at a share of training, 0..1."""
        return 1.0

    def step_share(self, progress: float) -> float:
        """Factor on the optimizer's own step for parameters with an anchor (RecAdam)."""
        return 1.0

    # ---- the strength ----

    def resolved(self, found: Optimization) -> "WeightPrior":
        """The same prior with its strength as λ.

        Raises:
            RecipeError: a half-life or a radius that does not follow from this optimizer.
        """
        if self.lambda_ is not None:
            return self
        if self.unresolved:
            strength = derived(self.half_life, self.radius, self.apply, found)
            return self.model_copy(update={"lambda_": strength})
        return self.model_copy(update={"lambda_": self.strength})

    @property
    def unresolved(self) -> bool:
        """Whether λ still depends on the optimizer."""
        return self.lambda_ is None and self.alpha is None

    @property
    def strength(self) -> float:
        """λ.

        Raises:
            RecipeError: it is a half-life or a radius and was not resolved yet.
        """
        if self.lambda_ is None and self.alpha is not None:
            return from_alpha(self.alpha)
        if self.lambda_ is None:
            raise RecipeError(
                "penalty.half_life and penalty.radius need the optimizer: take "
                "penalty.resolved(Optimization(learning_rate, steps)), or give lambda."
            )
        return self.lambda_

    def coefficients(self, start: StartingPoint) -> dict[str, float]:
        """c_n of every parameter with an anchor or of zero, before the schedule.

        Raises:
            RecipeError: a rule that fits nothing, or rules without ``groups`` in ``start``.
        """
        chosen = {}
        if self.rules:
            if start.groups is None:
                raise RecipeError("penalty.rules: give StartingPoint.of(model, groups=groups).")
            chosen = first_match(self.rules, start.groups, "penalty.rules")
        found = dict.fromkeys(start.digests, 0.0) | dict.fromkeys(start.fresh, self.head)
        for name in self.anchored(start):
            found[name] = chosen[name].lambda_ if name in chosen else self.strength
        return found

    def anchored(self, start: StartingPoint) -> set[str]:
        """Parameters that λ and the rules speak of: from the source, and a head once probed."""
        return {name for name in (*start.digests, *start.fresh) if not start.is_new(name)}

    def joined(self, name: str, start: StartingPoint) -> set[str]:
        """The parameters on which the gradient of one depends."""
        return {name}

    # ---- what training calls ----

    def value(self, theta: Parameters, start: StartingPoint, progress: float = 0.0) -> Tensor:
        """Ω as a scalar tensor (); differentiable. Under FSDP2 a collective on all processes."""
        terms = []
        for t in self.terms(theta, start, progress):
            density = self._form(t).density(difference(t.theta, t.anchor), self._weight(t, start))
            terms.append((t.c * density, theta[t.name]))
        return added_up(*zip(*terms, strict=True)).sum() if terms else torch.zeros(())

    @torch.no_grad()
    def add_gradient_(
        self,
        theta: Parameters,
        start: StartingPoint,
        scale: float = 1.0,
        progress: float = 0.0,
        moved: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add ``scale`` · ∂Ω/∂θ to every ``.grad`` that exists; a parameter without one is left.

        ``moved``: name -> indices of the only rows with θ ≠ θ⁰, where they are known.
        """
        for t in self.terms(theta, start, progress):
            if t.grad is None:
                continue
            rows = (moved or {}).get(t.name)
            with of_rows(rows, t.grad, t.theta, t.anchor, self._weight(t, start)) as parts:
                for g, p, a, w in chunks(*parts):
                    direction, factor = self._form(t).slope(fresh_difference(p, a), w)
                    g.add_(direction, alpha=factor * t.c * scale)

    @torch.no_grad()
    def proximal_(
        self,
        theta: Parameters,
        start: StartingPoint,
        rates: Mapping[str, float],
        progress: float = 0.0,
        moved: Mapping[str, Tensor] | None = None,
    ) -> None:
        """θ ← argmin_x ½‖x − θ‖² + η·Ω(x), for every parameter that has a rate η in ``rates``.

        ``moved``: as in `add_gradient_`, after the step.
        """
        for t in self.terms(theta, start, progress):
            if not rates.get(t.name) or t.grad is None:  # frozen by the policy, or no step taken
                continue
            rows = (moved or {}).get(t.name)
            with of_rows(rows, t.theta, t.anchor, self._weight(t, start)) as parts:
                for p, a, w in chunks(*parts):
                    self._form(t).draw_(p, a, rates[t.name] * t.c, w)

    def terms(self, theta: Parameters, start: StartingPoint, progress: float) -> Iterator[Term]:
        """Every parameter that trains with 0 < c_n < ∞; the rows it grew by come by themselves."""
        known, factor = start.coefficients(self), self.schedule(progress)
        for name, parameter in theta.items():
            if not (parameter.requires_grad and (name in start.fresh or name in start.copies)):
                continue
            c, anchor = known.get(name, 0.0), start.anchor(name, parameter)
            c = c if anchor is None else c * factor
            if name in start.rows:
                yield from self._grown(name, parameter, anchor, c, start.rows[name])
            elif 0 < c < math.inf:
                yield Term(name, local(parameter), anchor, c, local(parameter.grad))

    def _grown(self, name: str, parameter: Tensor, anchor: Tensor, c: float, count: int):
        theta, grad, count = local(parameter), local(parameter.grad), first_rows(count, parameter)
        old, new = (slice(0, count), anchor[:count], c), (slice(count, None), None, self.head)
        for rows, a, strength in (old, new):
            if 0 < strength < math.inf:
                yield Term(name, theta[rows], a, strength, part(grad, rows), rows)

    def pinned(self, start: StartingPoint) -> set[str]:
        """Parameters with c_n = ∞: frozen at θ⁰."""
        return {name for name, c in start.coefficients(self).items() if c == math.inf}

    def _form(self, term: Term) -> "WeightPrior | Square":
        return DECAY if term.anchor is None else self

    def _weight(self, term: Term, start: StartingPoint) -> Tensor | None:
        weight = self.metric(term.name, start) if term.anchor is not None else None
        return part(weight, term.rows)
