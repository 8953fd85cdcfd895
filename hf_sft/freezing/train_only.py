"""Train what patterns name, and the head."""

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field

from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.freezing.base import FreezePolicy, Signals
from hf_sft.layer_groups import LayerGroups


class TrainOnly(FreezePolicy):
    """Parameters that ``patterns`` open train, and the head; everything else is frozen.

    Patterns are shell globs on full parameter names, read in order: ``*.attention.*`` opens,
    ``!*.bias`` closes again, and the last that matches a name decides. One that opens or closes
    nothing is an error. In YAML they need quotes.

    Keys:
        patterns: globs, read in order; ! closes again.

    Example: {type: train-only, patterns: ["*.bias", "!*.LayerNorm.*"]}
    """

    type: Literal["train-only"] = "train-only"
    patterns: list[str] = Field(min_length=1)

    def open(self, groups: LayerGroups, progress: float, signals: Signals) -> frozenset[str]:
        opened: set[str] = set()
        for pattern in self.patterns:
            if not pattern.startswith("!"):
                opened |= match(pattern, groups.parameters)
            elif closed := match(pattern[1:], groups.parameters) & opened:
                opened -= closed
            else:
                raise RecipeError(
                    f"freeze.patterns: {pattern!r} closes nothing that a pattern before it opens; "
                    "move it down, or leave it out."
                )
        return frozenset(opened)


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
