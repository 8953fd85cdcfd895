"""Parts of a model in order, and phases of a training: what policies over time share."""

from collections.abc import Iterable

from hf_sft.errors import RecipeError
from hf_sft.layer_groups import LayerGroup, LayerGroups


def parts(groups: LayerGroups) -> list[LayerGroup]:
    """Stem and blocks, input first: all but the head."""
    return [group for group in groups if group.role != "head"]


def names_of(chosen: Iterable[LayerGroup]) -> frozenset[str]:
    """The parameters of some groups."""
    return frozenset(name for group in chosen for name in group.parameters)


def phase(progress: float, length: float) -> int:
    """The number of the phase, from 0, where each has this share of training.

    The rounding error of progress, a quotient of whole numbers, delays no phase by a step.
    """
    return int(progress / length + 1e-9)


def block_number(number: int, groups: LayerGroups, key: str) -> int:
    """The number of a block from 0; a negative one counts from the last.

    Raises:
        RecipeError: there is no such block.
    """
    count = len(groups.blocks)
    if not -count <= number < count:
        raise RecipeError(
            f"freeze.{key}: there is no block {number}; the model has {count}, numbered "
            f"0 to {count - 1}, or {-count} to -1 from the end."
        )
    return number % count
