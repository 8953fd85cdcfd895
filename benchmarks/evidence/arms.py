"""Arm: one way of training, its few candidates, and how one of them is chosen."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CLOSE = 0.005  # validation accuracy within this of the best counts as equal
SELECTION_SEED = 0


@dataclass(frozen=True)
class Arm:
    """What is compared: a row of the table.

    Attributes:
        name: as in the tables.
        grid: settings to choose from, on the validation rows of `SELECTION_SEED`.
        base: instead of a grid, the arm whose choice it takes over, with ``change``.
        variants: which states of one training it may take: its end (``final``), an earlier step
            (``stop 0.5``: the share of its steps), a point on the way from the source
            (``wise 0.5``).
    """

    name: str
    grid: tuple[dict, ...] = ()
    base: str | None = None
    change: dict = field(default_factory=dict)
    variants: tuple[str, ...] = ("final",)


@dataclass(frozen=True)
class Choice:
    """What an arm was given by its validation rows.

    Attributes:
        tried: how many of its candidates were known.
        of: how many it has.
    """

    settings: dict
    variant: str
    tried: int = 0
    of: int = 0


def candidates(arm: Arm, chosen: dict[str, Choice]) -> list[Choice]:
    """All that an arm may choose from, as far as its base has chosen."""
    grid = arm.grid
    if arm.base:
        grid = (chosen[arm.base].settings | arm.change,) if arm.base in chosen else ()
    return [Choice(settings, variant) for settings in grid for variant in arm.variants]


def choose(options: list[Choice], scores: list[dict]) -> Choice:
    """The one that keeps most of the source among those within `CLOSE` of the best accuracy."""
    best = max(score["accuracy"] for score in scores)
    near = [
        (score["retention"] or 0.0, score["accuracy"], -i)
        for i, score in enumerate(scores)
        if score["accuracy"] >= best - CLOSE
    ]
    return options[-max(near)[2]]


def select(arms: Iterable[Arm], line: Callable[[dict], dict | None]) -> dict[str, Choice]:
    """Arm -> its choice among the candidates that are known; arms with none are left out.

    Args:
        arms: a base before what takes over from it.
        line: settings -> the results of the selection seed, or None where they are missing.
    """
    chosen: dict[str, Choice] = {}
    for arm in arms:
        options = candidates(arm, chosen)
        known = [(o, results) for o in options if (results := line(o.settings)) is not None]
        if known:
            scores = [results["validation"][option.variant] for option, results in known]
            best = choose([option for option, _ in known], scores)
            chosen[arm.name] = Choice(best.settings, best.variant, len(known), len(options))
    return chosen
