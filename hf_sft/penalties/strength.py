"""How hard a pull is: λ, the paper's α, a half-life or a radius, all turned into λ."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_serializer

from hf_sft.errors import RecipeError
from hf_sft.selection import Rule


class StrengthRule(Rule):
    """A coefficient of its own for some parameters; ``inf`` freezes them at θ⁰."""

    lambda_: float = Field(alias="lambda", ge=0)

    @field_serializer("lambda_", when_used="json")
    def _finite_or_text(self, value: float) -> float | str:
        return value if math.isfinite(value) else "inf"  # JSON has no infinity


@dataclass(frozen=True)
class Optimization:
    """What the strength of a pull depends on besides λ.

    Attributes:
        learning_rate: η, the highest of the schedule.
        steps: optimizer steps of the whole training.
        momentum: μ of SGD.
        adaptive: whether steps are normalised by their own size, as Adam's are.
    """

    learning_rate: float
    steps: int
    momentum: float = 0.0
    adaptive: bool = True


STRENGTHS = ("lambda_", "lambda", "alpha", "half_life", "radius")


def one_strength(settings: Mapping[str, Any], squared: bool) -> str | None:
    """The key that says how strong a prior is; None where its default is meant.

    Raises:
        ValueError: several; an empty one; a unit of squares for a prior (not ``squared``) of none.
    """
    given = [key for key in STRENGTHS if settings.get(key) is not None]
    if not given and {"lambda", "lambda_"} & settings.keys():
        raise ValueError("lambda: a number is wanted, found nothing; 0 turns the pull off")
    if len(given) > 1:
        raise ValueError(f"one strength is wanted, found {' and '.join(given)}")
    if not squared and set(given) & set(STRENGTHS[2:]):
        raise ValueError(f"{given[0]} is a unit of squared distances; give lambda")
    return given[0] if given else None


def from_alpha(alpha: float) -> float:
    """λ = α/2: Li, Grandvalet, Davoine 2018 (arXiv 1802.01483) write (α/2)·‖θ − θ⁰‖²."""
    return alpha / 2


def derived(half_life: float | None, radius: float | None, how: str, found: Optimization) -> float:
    """λ of the one that is given; see `from_half_life` and `from_radius`."""
    if half_life is None:
        return from_radius(radius, how, found)
    return from_half_life(half_life, how, found)


def from_half_life(share: float, how: str, found: Optimization) -> float:
    """λ under which the pull alone halves θ − θ⁰ in n½ = ``share`` · steps steps at rate η.

    proximal: each step divides θ − θ⁰ by 1 + 2ηλ, so λ = (2^(1/n½) − 1)/(2η), exactly.
    gradient under SGD: each step takes κ = 2ηλ/(1−μ) of it, so λ = (1 − 2^(−1/n½))·(1−μ)/(2η):
    exactly without momentum; with it, once n½ is large beside 1/(1−μ).

    Raises:
        RecipeError: gradient under Adam, whose steps do not shrink with the pull.
    """
    steps, rate = share * found.steps, found.learning_rate
    if how == "proximal":
        return (2 ** (1 / steps) - 1) / (2 * rate)
    if found.adaptive:
        raise RecipeError(
            "penalty.half_life: an adaptive optimizer divides the pull's gradient by its own size, "
            "so that no half-life follows from λ. Set penalty.apply: proximal, training.optim: "
            "sgd, or give penalty.lambda."
        )
    return (1 - 2 ** (-1 / steps)) * (1 - found.momentum) / (2 * rate)


def from_radius(radius: float, how: str, found: Optimization) -> float:
    """λ = U/(2r): Adam's steps of size ≤ ηU against the proximal pull end at |d| ≤ U/(2λ) = r.

    U = 1 where a gradient keeps its sign and size; Adam's bound for rare large ones is
    (1−β₁)/√(1−β₂), 3.2 with its defaults: r holds up to that factor.

    Raises:
        RecipeError: another optimizer than an adaptive one, or the gradient form.
    """
    if how != "proximal" or not found.adaptive:
        raise RecipeError(
            "penalty.radius: bounds |θ − θ⁰| only for apply: proximal under an adaptive optimizer "
            "(Adam, AdamW), whose steps have a largest size. Set those, or use {type: ball}."
        )
    return 1 / (2 * radius)
