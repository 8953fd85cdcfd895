"""Which parameters a rule of the recipe speaks of: by role, by name or by depth."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hf_sft.errors import RecipeError, listing, nearest
from hf_sft.layer_groups import LayerGroups

Role = Literal["weight", "bias", "norm", "embedding", "stem", "block", "head"]
KEYS = ("role", "name", "depth")


class Rule(BaseModel):
    """Parameters that fit every key given; with no key given, all of them.

    Keys:
        role: what it is (weight, bias, norm, embedding) or where it stands (stem, block, head).
        name: a shell glob on the parameter's full name.
        depth: the number of its block, from 0, or the first and the last of several, both included;
            negative numbers count from the last block.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    role: Role | None = None
    name: str | None = None
    depth: int | tuple[int, int] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticCustomError("boolean", "should be no truth value")
        return value

    @model_validator(mode="after")
    def _range_in_order(self):
        if isinstance(self.depth, tuple):
            first, last = self.depth
            if first >= 0 and 0 <= last < first:
                raise ValueError(f"depth: [{first}, {last}] is empty; write the smaller one first")
        return self

    def selects(self, names: Iterable[str], groups: LayerGroups) -> set[str]:
        """Those of ``names`` that fit."""
        found = set(names)
        if self.name is not None:
            found = {name for name in found if fnmatchcase(name, self.name)}
        if self.role is not None:
            found &= of_role(self.role, groups)
        if self.depth is not None:
            found &= at_depth(self.depth, groups)
        return found

    def __str__(self) -> str:
        """The keys given, as the recipe spells them."""
        given = {key: getattr(self, key) for key in KEYS if getattr(self, key) is not None}
        return ", ".join(f"{key}: {value}" for key, value in given.items()) or "everything"


R = TypeVar("R", bound=Rule)


def of_role(role: Role, groups: LayerGroups) -> set[str]:
    """Names of the parameters of a role."""
    if role in ("stem", "block", "head"):
        return {name for group in groups if group.role == role for name in group.parameters}
    if role == "norm":
        return set(groups.norm_parameters)
    if role == "embedding":
        return set(groups.embedding_parameters)
    rest = set(groups.parameters) - groups.norm_parameters - groups.embedding_parameters
    biases = {name for name in rest if name.rpartition(".")[2].endswith("bias")}
    return biases if role == "bias" else rest - biases


def at_depth(depth: int | tuple[int, int], groups: LayerGroups) -> set[str]:
    """Names of the parameters of one block, or of a range of blocks."""
    count = len(groups.blocks)
    first, last = depth if isinstance(depth, tuple) else (depth, depth)
    first, last = (number + count if number < 0 else number for number in (first, last))
    chosen = groups.blocks[max(0, first) : max(0, last + 1)]
    return {name for group in chosen for name in group.parameters}


def first_match(rules: Sequence[R], groups: LayerGroups, where: str) -> dict[str, R]:
    """Parameter -> the first rule that fits it; parameters that none fits are left out.

    Raises:
        RecipeError: a rule that fits nothing, or nothing that an earlier one left.
    """
    left, found = set(groups.parameters), {}
    for number, rule in enumerate(rules):
        fits = rule.selects(groups.parameters, groups)
        if not fits & left:
            raise RecipeError(f"{where}.{number}: {_why_idle(rule, fits, groups)}")
        found |= dict.fromkeys(fits & left, rule)
        left -= fits
    return found


def _why_idle(rule: Rule, fits: set[str], groups: LayerGroups) -> str:
    if fits:
        return f"({rule}) fits only parameters that an earlier rule has taken; move it up."
    close = nearest(rule.name, groups.parameters) if rule.name else ""
    names = groups.parameters
    return (
        f"({rule}) fits no parameter.{close} Blocks are numbered 0 to {len(groups.blocks) - 1}; "
        f"parameters are named like: {listing(names[:: max(1, len(names) // 6)], 7)}."
    )
