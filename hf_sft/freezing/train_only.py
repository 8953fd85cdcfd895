"""Train what patterns name, and the head."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class TrainOnly(FreezePolicy):
    """Parameters that match one of ``patterns`` train, and the head; everything else is frozen.

    Patterns are shell globs on full parameter names (``*.attention.*``); one that matches nothing
    is an error.
    """

    type: Literal["train-only"] = "train-only"
    patterns: list[str] = Field(min_length=1)

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        return frozenset().union(*(match(p, groups.parameters) for p in self.patterns))


def match(pattern: str, names: tuple[str, ...]) -> set[str]:
    """Names that a shell glob matches.

    Raises:
        RecipeError: it matches none.
    """
    if found := {name for name in names if fnmatchcase(name, pattern)}:
        return found
    raise RecipeError(
        f"freeze.patterns: {pattern!r} matches no parameter.{nearest(pattern, names)} "
        f"Parameters are named like: {listing(names[:: max(1, len(names) // 6)], 7)}."
    )
