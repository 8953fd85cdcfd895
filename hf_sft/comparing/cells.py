"""Cells of a comparison: every arm × seed × data size as an ordinary recipe with a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sft.comparing.arms import overrides_of
from hf_sft.comparing.comparison import Comparison
from hf_sft.errors import RecipeError
from hf_sft.output_folder import COMPARE
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import as_override


@dataclass(frozen=True)
class Cell:
    """One run: ``hf-sft run RECIPE`` with these overrides.

    Attributes:
        size: the value of the data size's key; None where the recipe's own is not varied.
    """

    arm: str
    seed: int
    size: int | None
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.recipe.output_dir

    @property
    def place(self) -> str:
        """The same below the comparison's folder."""
        return _place(self.arm, self.seed, self.size)

    @property
    def name(self) -> str:
        """The arm with its seed and size, for messages."""
        size = "" if self.size is None else f", size {self.size}"
        return f"{self.arm}, seed {self.seed}{size}"


def cells(recipe: Recipe, overrides: Sequence[str]) -> list[Cell]:
    """All of them; those that make a pair stand together, so that a stop leaves whole pairs.

    Args:
        recipe: with its overrides applied.
        overrides: those that it was loaded with; the arms' own come after them.

    Raises:
        RecipeError: every arm that is no recipe, with its name.
    """
    asked, found, problems = recipe.compare or Comparison(), [], {}
    for seed in asked.seeds:
        for key, size in sizes(asked):
            for arm, given in asked.arms.items():
                own = overrides_of(arm, given, recipe.raw)
                place = folder(recipe) / _place(arm, seed, size)
                alone = {"training.push_to_hub": False} if _pushes(recipe) else {}
                words = (*overrides, *_words(own | alone, seed, key, size, place))
                try:
                    run = Recipe.load(recipe.path, words, base=recipe.base)
                except RecipeError as error:
                    problems[arm] = f"compare.arms.{arm}: {error}"
                    continue
                found.append(Cell(arm, seed, size, words, run))
    if problems:
        raise RecipeError("\n".join(problems.values()))
    return found


def sizes(asked: Comparison) -> list[tuple[str | None, int | None]]:
    """(key, value) of every data size; a single pair of None where it is not varied."""
    given = [(key, value) for key, values in asked.sizes.items() for value in values]
    return given or [(None, None)]


def folder(recipe: Recipe) -> Path:
    """Of the comparison, inside of the recipe's own."""
    return recipe.output_dir / COMPARE


def _place(arm: str, seed: int, size: int | None) -> str:
    """``ARM/seed-S``; where sizes are compared, ``ARM/seed-S/n-N``."""
    return f"{arm}/seed-{seed}" + ("" if size is None else f"/n-{size}")


def _pushes(recipe: Recipe) -> bool:
    """Whether the recipe's own run goes to the Hub, where its arms would overwrite each other."""
    return bool(recipe.training.get("push_to_hub"))


def _words(
    own: dict[str, Any], seed: int, key: str | None, size: int | None, place: Path
) -> list[str]:
    """An arm's overrides, then what its pair shares."""
    shared = {"training.seed": seed, "data.split_seed": seed}
    shared |= {} if key is None else {key: size}
    shared |= {"training.output_dir": str(place), "compare": None}
    return [as_override(name, value) for name, value in (own | shared).items()]
