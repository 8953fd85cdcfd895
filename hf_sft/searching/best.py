"""The best trial of a search, and the ordinary recipe of it."""

import math
import os
from pathlib import Path
from typing import Any

from hf_sft.errors import UserError
from hf_sft.recipe import Recipe

Row = dict[str, Any]
BLOCKS = ("data", "model", "retention")  # those that name files


def best(rows: list[Row], greater: bool, least: float | None) -> Row | None:
    """The finished trial with the best target among those that keep at least ``least``.

    Of equals the one that keeps more, then the earlier. None where no trial has kept as much, or
    none has finished.
    """
    fits = [row for row in rows if row["target"] is not None and keeps(row, least)]
    return min(fits, key=lambda row: rank(row, greater), default=None)


def rank(row: Row, greater: bool) -> tuple[float, float, int]:
    """Where a trial stands, the best lowest: by target, retention, number; what lacks is last."""
    target, kept = row["target"], row["retention"]
    score = math.inf if target is None else -target if greater else target
    return score, math.inf if kept is None else -kept, row["number"]


def keeps(row: Row, least: float | None) -> bool:
    """Whether a trial has kept enough; what was not measured has not."""
    return least is None or (row["retention"] is not None and row["retention"] >= least)


def as_recipe(trial: Recipe, output_dir: Path, folder: Path) -> Row:
    """A trial's recipe as a file in ``folder`` that trains the same into ``output_dir``."""
    raw = only_the_run(trial)
    raw["training"] = {**raw["training"], "output_dir": str(output_dir)}
    for block in BLOCKS:
        settings = getattr(trial, block)
        if settings is not None:
            moved = {
                key: _from(folder, trial, name)
                for key, name in settings.files().items()
                if raw[block].get(key) == name
            }
            raw[block] = {**raw[block], **moved}
    return raw


def only_the_run(trial: Recipe) -> Row:
    """A trial's recipe as ``hf-sft run`` reads it, without the blocks of other commands."""
    return {key: value for key, value in trial.raw.items() if key not in ("search", "compare")}


def _from(folder: Path, trial: Recipe, name: str) -> str:
    """A relative path of the recipe's folder as one of ``folder``; any other name as it is."""
    try:
        there = trial.locate(name)
    except UserError:
        return name
    beside = trial.base / name
    if os.path.isabs(name) or not beside.exists() or not there.samefile(beside):
        return name
    return f"./{Path(os.path.relpath(there, folder.resolve())).as_posix()}"
