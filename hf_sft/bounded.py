"""Nested values out of YAML: few lines with aliases may stand for more than any memory holds."""

from typing import Any

DEEPEST = 32  # levels of nesting that anything here could mean
MOST = 100_000  # values, each counted as often as an alias repeats it


def bounded(value: Any) -> Any:
    """``value`` itself, where it is of a size that can be written out.

    Raises:
        ValueError: it holds itself, nests deeper than DEEPEST, or unfolds to more than MOST values.
    """
    _size(value, 0, {}, set())
    return value


def _size(value: Any, depth: int, known: dict[int, int], around: set[int]) -> int:
    """How many values it unfolds to; ``known``: of what was counted; ``around``: what holds it."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) in around:
        raise ValueError("a value holds itself through an alias (*name). Write it out.")
    if depth == DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels. Write it flatter.")
    if id(value) not in known:
        around.add(id(value))
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, depth + 1, known, around) for one in inside)
        around.remove(id(value))
    if known[id(value)] > MOST:
        raise ValueError(f"with its aliases (*name) it has more than {MOST:,} values. Use fewer.")
    return known[id(value)]
