"""Means with their spread, and differences of pairs with their t interval."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """``count`` values: their mean and their standard deviation, None for a single one."""

    count: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """``count`` pairs: the mean difference and its interval, None for a single pair."""

    count: int
    mean: float
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """Of the values that are numbers; None where none is."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    return Spread(len(values), fmean(values), stdev(values) if len(values) > 1 else None)


def difference(
    values: Mapping[Hashable, float], base: Mapping[Hashable, float]
) -> Difference | None:
    """d̄ ± t_{n−1, 97.5 %}·s/√n over the n pairs that both have; None without a pair.

    d = value − base of one seed; s its standard deviation with n − 1 (Student's paired interval,
    95 %). Of seeds it holds where differences are about normal, and for each arm alone.
    """
    pairs = [
        value - base[key]
        for key, value in values.items()
        if key in base and math.isfinite(value) and math.isfinite(base[key])
    ]
    if not pairs:
        return None
    mean, count = fmean(pairs), len(pairs)
    if count == 1:
        return Difference(1, mean, None, None)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * stdev(pairs) / math.sqrt(count)
    return Difference(count, mean, mean - half, mean + half)
