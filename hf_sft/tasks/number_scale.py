"""Numbers of a scale that squared errors and a new head do not suit, and how to write them."""

import math
from collections.abc import Sequence

import numpy as np

FAR = 10.0  # a mean, or a deviation, above which labels are far from a new head's answers
NARROW = 0.01  # a deviation below which errors are too small to be learnt from
OFF_CENTRE = 3.0  # deviations that the mean is from 0, where taking it off helps


def far_from_one(column: str, numbers: Sequence[float]) -> str | None:
    """What to say of labels whose |mean| or standard deviation is above FAR, or whose deviation
    is below NARROW, with a remedy that brings them near 1; None for others.

    A new head answers about 0, and the mean squared error and its gradient grow with the scale
    while the steps of Adam do not.
    """
    if len(numbers) == 0:
        return None
    values = np.asarray(numbers, dtype=np.float64)
    mean, spread = float(values.mean()), float(values.std())
    if spread == 0 or (abs(mean) <= FAR and NARROW <= spread <= FAR):
        return None
    return (
        f"{column!r} has mean {mean:,.6g} and standard deviation {spread:,.6g} (from "
        f"{values.min():,.6g} to {values.max():,.6g}). A new head answers about 0 and its steps "
        "are of one size, so that numbers far from 1 are learnt slowly or not at all. "
        f"{_remedy(mean, spread)}; the model's answers and errors are in that unit then."
    )


def _remedy(mean: float, spread: float) -> str:
    """A number to take off where the mean is far beside the spread, a power of ten to divide by."""
    shift = abs(mean) > OFF_CENTRE * spread
    size = spread if shift else math.hypot(mean, spread)
    scale = 10.0 ** round(math.log10(size))
    steps = [f"subtract {_tidy(mean, spread)}"] if shift else []
    steps += [f"divide by {scale:.15g}"] if scale != 1 else []
    return f"Write the column in another unit: {', then '.join(steps)}"


def _tidy(mean: float, spread: float) -> str:
    """The mean, exact to the first digit of the spread."""
    return f"{round(mean, -math.floor(math.log10(spread))):.15g}"
