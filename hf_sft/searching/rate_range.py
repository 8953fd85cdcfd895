"""What a learning-rate range test says: rates, losses, and the rate to start from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SMOOTHING = 0.9  # weight of what was, in the running mean of the losses
DIVERGED = 4.0  # times the lowest smoothed loss
BELOW = 10  # the suggestion stays this many times below the rate that diverges
SKIPPED = 5  # first steps, whose running mean knows too few batches for a slope


@dataclass(frozen=True)
class RateRange:
    """The outcome of a range test.

    Attributes:
        rates: the learning rate of every step, rising.
        losses: the loss of every step's batch, before the step.
        smoothed: their running mean, corrected for its start.
        steepest: the rate at which the smoothed loss falls fastest over log rate; None: nowhere.
        diverged: the rate at which it left DIVERGED times its lowest, or was not finite; None: not.
        phase: which part of a policy over time was measured, in words; "" where nothing changes.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    diverged: float | None
    phase: str = ""

    @property
    def suggestion(self) -> float | None:
        """The steepest descent's rate, but a tenth of the diverging one at most; None: no fall."""
        known = [self.steepest] if self.steepest else []
        if known and self.diverged:
            known.append(self.diverged / BELOW)
        return min(known, default=None)


def rates_between(low: float, high: float, steps: int) -> list[float]:
    """``steps`` rates from ``low`` to ``high``, each the same factor above the last."""
    factor = (high / low) ** (1 / (steps - 1))
    return [low * factor**step for step in range(steps - 1)] + [high]


def smooth(losses: Sequence[float]) -> list[float]:
    """m_t = β·m_{t−1} + (1 − β)·l_t, divided by 1 − β^t, β = 0.9."""
    mean, found = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**step))
    return found


def is_divergent(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or its running mean far above the lowest."""
    if not math.isfinite(losses[-1]):
        return True
    means = smooth(losses)
    return len(means) > SKIPPED and means[-1] > DIVERGED * min(means)


def judge(rates: Sequence[float], losses: Sequence[float]) -> RateRange:
    """What rates and losses of a test come to; a last loss that diverges is its end."""
    diverged = rates[len(losses) - 1] if is_divergent(losses) else None
    kept = [loss for loss in losses if math.isfinite(loss)]
    rates, means = list(rates[: len(kept)]), smooth(kept)
    slopes = {
        rates[i]: (means[i + 1] - means[i - 1]) / math.log(rates[i + 1] / rates[i - 1])
        for i in range(min(SKIPPED, len(means) // 2), len(means) - 1)
        if i
    }
    steepest = min(slopes, key=slopes.__getitem__, default=None)
    falls = steepest is not None and slopes[steepest] < 0
    return RateRange(rates, kept, means, steepest if falls else None, diverged)
