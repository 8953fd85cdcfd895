"""What of a comparison is done already: finished arms are reused where nothing has changed."""

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TypeVar

from hf_sft import output_folder
from hf_sft.comparing.cells import Cell
from hf_sft.data_identity import data_identity
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import read
from hf_sft.reporting.report import Report
from hf_sft.running import load_data, prepare
from hf_sft.training.run_record import recorded_source
from hf_sft.training_arguments import training_arguments

T = TypeVar("T")


class State(Enum):
    """What a cell's folder holds."""

    TO_RUN = "nothing, or the unfinished beginning of this run"
    DONE = "this run, finished"
    BARE = "this run, finished, without its model"
    OTHER = "a run of another recipe, of other data or of another source"


class Now:
    """The rows and the source that recipes name, as they are at present; each looked at once."""

    def __init__(self) -> None:
        self._data: dict[str, dict[str, str]] = {}
        self._source: dict[str, str] = {}

    def data(self, recipe: Recipe) -> dict[str, str]:
        """Split -> hash of its rows."""
        key = _key(recipe, "task", "data", also=recipe.selects)
        return _once(self._data, key, lambda: data_identity(load_data(recipe)))

    def source(self, recipe: Recipe) -> str:
        """The fingerprint of θ⁰, which is drawn by the seed where it is not pretrained."""
        seed = None if recipe.model.pretrained else recipe.training.get("seed")
        key = _key(recipe, "task", "model", "adapter", also=seed)
        return _once(self._source, key, lambda: _fingerprint(recipe))


def state(cell: Cell, now: Now, keep_models: bool) -> State:
    """What is to be done about a cell.

    A folder that no run has written is left to the run, which refuses what it would replace.
    """
    folder = cell.folder
    if not output_folder.is_run(folder) or not (folder / output_folder.RECIPE).is_file():
        return State.TO_RUN
    recorded = output_folder.identity(read(folder / output_folder.RECIPE))
    if recorded != output_folder.identity(cell.recipe.raw):
        return State.OTHER
    if output_folder.changed_data(folder, now.data(cell.recipe)):
        return State.OTHER
    begun = _source_of(folder)
    if begun is not None and begun != now.source(cell.recipe):
        return State.OTHER
    if not output_folder.is_finished(folder):
        return State.TO_RUN
    bare = keep_models and not (folder / output_folder.MODEL).is_dir()
    return State.BARE if bare else State.DONE


def _source_of(folder: Path) -> str | None:
    """The fingerprint that a run was trained from; None where it has not come to a checkpoint."""
    if output_folder.is_finished(folder):
        return Report.load(folder).data["source"]["fingerprint"]
    last = output_folder.newest_whole_checkpoint(folder / output_folder.CHECKPOINTS)
    return recorded_source(last) if last is not None else None


def _fingerprint(recipe: Recipe) -> str:
    """As a run of the recipe would record it."""
    with output_folder.nothing_left(recipe.output_dir):
        prepared = prepare(recipe, training_arguments(recipe))
        return prepared.trainer.starting_point.fingerprint


def _key(recipe: Recipe, *blocks: str, also: object) -> str:
    named = {block: recipe.raw.get(block) for block in blocks}
    return json.dumps([named, also], sort_keys=True, default=str)


def _once(known: dict[str, T], key: str, look: Callable[[], T]) -> T:
    if key not in known:
        known[key] = look()
    return known[key]
