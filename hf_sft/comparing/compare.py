"""compare: every arm of a recipe over seeds and data sizes, and what the arms come to."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_sft import output_folder
from hf_sft.comparing import compare_page, results
from hf_sft.comparing.cells import Cell, cells, folder
from hf_sft.comparing.reuse import Now, State, state
from hf_sft.comparing.side_processes import Order, run_all, threads_each
from hf_sft.errors import RecipeError, UserError, listing
from hf_sft.recipe import Recipe

log = logging.getLogger(__name__)

PAGE = "compare.html"


def compare(
    path: Path,
    overrides: Sequence[str] = (),
    jobs: int = 1,
    keep_models: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run what is not done yet of a recipe's comparison; the record that compare.json holds.

    Every arm is an ordinary run in ``compare/ARM/seed-S`` below the recipe's output folder, in a
    process of its own, ``jobs`` at a time. A finished arm is reused where its recipe, its rows and
    its source are the same; one that fails takes no other with it. Models are removed once they
    are measured, unless ``keep_models``. ``overwrite`` runs what belongs to another recipe anew.

    Raises:
        RecipeError: the recipe or an arm is wrong, or a folder holds another run; nothing has been
            written then.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError("compare starts processes itself: run it without a launcher, with --jobs")
    recipe = Recipe.load(path, overrides)
    every, now = cells(recipe, overrides), Now()
    with output_folder.nothing_left(recipe.output_dir):
        now.source(recipe)  # what is wrong with data and source is told once, here
        found = {cell.name: state(cell, now, keep_models) for cell in every}
        _refuse_others([c for c in every if found[c.name] is State.OTHER], overwrite)
    tell = Teller(recipe, every, [c.name for c in every if found[c.name] is State.DONE])
    orders = {
        _order(cell, found[cell.name], keep_models, threads_each(jobs)): cell
        for cell in every
        if found[cell.name] is not State.DONE
    }
    run_all(list(orders), jobs, lambda order, problem: tell(orders[order], problem))
    return tell.record()


def _order(cell: Cell, found: State, keep_model: bool, threads: int | None) -> Order:
    """What a process of its own is to do for a cell."""
    return Order(
        cell.recipe.path,
        cell.recipe.base,
        cell.overrides,
        log=cell.folder.with_name(f"{cell.folder.name}.log"),
        overwrite=found in (State.OTHER, State.BARE),
        keep_model=keep_model,
        threads=threads,
    )


class Teller:
    """Says how far a comparison is, and keeps its record and its page up to date."""

    def __init__(self, recipe: Recipe, every: Sequence[Cell], done: list[str]):
        self.recipe, self.every, self.done = recipe, every, done
        self.problems: dict[str, str] = {}
        if done:
            log.warning("%d of %d runs are finished already.", len(done), len(every))

    def __call__(self, cell: Cell, problem: str | None) -> None:
        """One run has ended."""
        if problem is None:
            self.done.append(cell.name)
        else:
            self.problems[cell.name] = problem
        ended = len(self.done) + len(self.problems)
        how = "finished" if problem is None else f"FAILED: {problem}"
        log.warning("%d of %d: %s %s", ended, len(self.every), cell.name, how)
        self.record()

    def record(self) -> dict[str, Any]:
        """Write compare.json and compare.html as things stand."""
        data = results.collect(self.recipe, self.every, self.problems, self.done)
        place = folder(self.recipe)
        place.mkdir(parents=True, exist_ok=True)
        results.save(data, place)
        (place / PAGE).write_text(compare_page.render(data), "utf-8")
        return data


def refuse_failures(data: dict[str, Any]) -> None:
    """Say at the end which runs are missing.

    Raises:
        UserError: some are.
    """
    failed = [run for run in data["runs"] if run["state"] == "failed"]
    if failed:
        told = [f"{run['folder']}: {run['problem']}" for run in failed]
        raise UserError(
            "\n".join(
                [
                    f"{len(failed)} of {len(data['runs'])} runs failed; the others are kept:",
                    *told,
                    "The same command tries them again.",
                ]
            )
        )


def _refuse_others(others: Sequence[Cell], overwrite: bool) -> None:
    """Finished work is not thrown away because a key has changed.

    Raises:
        RecipeError: there is some, and nobody said so.
    """
    if others and not overwrite:
        named = listing(f"'{cell.folder}'" for cell in others)
        raise RecipeError(
            f"training.output_dir: {len(others)} folders of the comparison hold runs of another "
            f"recipe, of other data or of another source: {named}. Choose another "
            "training.output_dir, or run those anew with --overwrite."
        )
