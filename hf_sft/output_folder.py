"""The folder of a run: whose it is, where it goes on, and what is written there when."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_sft.errors import RecipeError, listing
from hf_sft.finished import refuse_unfinished
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import dump, read
from hf_sft.reporting import drift_picture
from hf_sft.training.checkpoint_code import refuse_code
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint

log = logging.getLogger(__name__)

RECIPE, REPORT, CHECKPOINTS, MODEL = "recipe.yaml", "report.json", "checkpoints", "model"
ADAPTER = "adapter"
COMPARE = "compare"  # below the run's folder, those of the arms it is compared with
SEARCH = "search"  # likewise, the trials of a search
PUBLISHED = (REPORT, "README.md", "report.html")  # a run that has them all is finished
OURS = (RECIPE, *PUBLISHED, drift_picture.NAME, MODEL, ADAPTER, CHECKPOINTS)
ORIGIN = "recipe_folder.txt"  # in checkpoints/, which is never published
DATA = "data.json"  # likewise: what the rows were when the run began


def claim(recipe: Recipe, overwrite: bool) -> str | None:
    """The checkpoint to go on from, or None to start; refuses a folder that is not this run's.

    Raises:
        RecipeError: the folder holds a finished run, another run, or something else altogether.
        UserError: its checkpoint holds code.
    """
    folder = recipe.output_dir
    place = f"training.output_dir: '{folder}'"
    refuse_unwritable(folder)
    if not folder.exists() or all(_is_nothing(path) for path in folder.iterdir()):
        return None
    remedy = "Choose another training.output_dir, or start anew with --overwrite."
    if not is_run(folder):
        return _not_a_run(folder, place, overwrite)
    if overwrite:
        return None
    if not (folder / RECIPE).is_file():
        raise RecipeError(f"{place} holds the remains of a run. {remedy}")
    if identity(read(folder / RECIPE)) != identity(recipe.raw):
        raise RecipeError(f"{place} holds a run of a different recipe. {remedy}")
    if is_finished(folder):
        raise RecipeError(f"{place} holds a finished run. {remedy}")
    if recipe.training.get("resume_from_checkpoint") is False:
        raise RecipeError(f"{place} holds an unfinished run, not to be resumed. {remedy}")
    checkpoint = newest_whole_checkpoint(folder / CHECKPOINTS)
    if checkpoint is not None:
        refuse_code(checkpoint)
        log.warning("Going on from %s.", checkpoint)
    return str(checkpoint) if checkpoint is not None else None


def refuse_unwritable(folder: Path) -> None:
    """No run could be written there.

    Raises:
        RecipeError: ``folder`` is a file, or lies where it cannot be made.
    """
    place = f"training.output_dir: '{folder}'"
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{place} is a file. Choose another training.output_dir.")
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise RecipeError(
            f"{place} cannot be made or written: '{above}' is no folder you may write in. Choose "
            "another training.output_dir."
        )


def _is_nothing(path: Path) -> bool:
    """Whether it is of other runs, or what a run made that was killed before its record."""
    if path.name != CHECKPOINTS or not path.is_dir():
        return path.name in (COMPARE, SEARCH)
    return all(inside.name == f"{ORIGIN}.partial" for inside in path.iterdir())


def is_run(folder: Path) -> bool:
    """Whether a run wrote the folder; a recipe that merely lies there does not make it one."""
    return (folder / CHECKPOINTS / ORIGIN).is_file()  # written first, taken away last


def is_finished(folder: Path) -> bool:
    """Whether a run has come to its end there."""
    return is_run(folder) and all((folder / name).exists() for name in PUBLISHED)


def _not_a_run(folder: Path, place: str, overwrite: bool) -> None:
    """Files of somebody else: they may stay beside a run, but not be replaced by one."""
    taken = [name for name in OURS if (folder / name).exists()]
    if taken:
        raise RecipeError(
            f"{place} is no run, and a run would replace what is there: {listing(taken)}. "
            "Choose another training.output_dir."
        )
    if not overwrite:
        raise RecipeError(
            f"{place} holds other files. Choose another training.output_dir, or write beside them "
            "with --overwrite."
        )


def identity(raw: dict[str, Any]) -> dict[str, Any]:
    """What makes two recipes the same run: all but place, resuming, ``compare``, ``search``."""
    training = dict(raw.get("training") or {})
    for key in ("output_dir", "resume_from_checkpoint"):
        training.pop(key, None)
    own = {**raw, "training": training}
    for beside in (COMPARE, SEARCH):  # what else is run
        own.pop(beside, None)
    return json.loads(json.dumps(own, sort_keys=True, default=str))


def data_of(folder: Path) -> dict[str, str]:
    """Split -> hash of the rows a run began with; nothing where that was not recorded."""
    file = folder / CHECKPOINTS / DATA
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}  # whole, or absent


def changed_data(folder: Path, identity: dict[str, str]) -> list[str]:
    """The splits that are others than those a run began with."""
    then = data_of(folder) or identity
    return [split for split in then | identity if then.get(split) != identity.get(split)]


def refuse_other_data(recipe: Recipe, identity: dict[str, str]) -> None:
    """Going on with other rows would be no run of the recipe that began.

    Raises:
        RecipeError: a split has changed since.
    """
    if changed := changed_data(recipe.output_dir, identity):
        raise RecipeError(
            f"training.output_dir: '{recipe.output_dir}' holds an unfinished run whose data have "
            f"changed since it began: {listing(changed)}. Restore the data, or start anew with "
            "--overwrite."
        )


def record(
    recipe: Recipe, args: TrainingArguments, overwrite: bool, identity: dict[str, str]
) -> None:
    """Write the resolved recipe; with ``overwrite``, take away what an earlier run left."""
    folder = recipe.output_dir
    with args.main_process_first(desc="recording the recipe"):
        if args.process_index != 0:
            return
        if overwrite:
            clear(folder)
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        _write(folder / CHECKPOINTS / ORIGIN, str(recipe.path.resolve().parent))
        _write(folder / CHECKPOINTS / DATA, json.dumps(identity))
        _write(folder / RECIPE, dump(recipe.raw))


def _write(path: Path, text: str) -> None:
    """Put the file there whole, at once."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else that may lie there."""
    checkpoints = folder / CHECKPOINTS
    inside = [path for path in checkpoints.glob("*") if path.name != ORIGIN]
    for path in [*(folder / name for name in OURS if name != CHECKPOINTS), *inside]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if checkpoints.is_dir():  # with the mark that the folder is a run's, the last to go
        shutil.rmtree(checkpoints)


def keep_report_only(folder: Path) -> None:
    """Remove the model and the checkpoints of a finished run; its report, card and page stay."""
    for path in (folder / MODEL, folder / ADAPTER, *(folder / CHECKPOINTS).glob("*")):
        if path.is_dir():
            shutil.rmtree(path)


@contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Take away the empty folders made inside: Trainer makes its own before anything is sure."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        yield
    finally:
        made = [folder / CHECKPOINTS, folder.absolute(), *folder.absolute().parents]
        for path in made:
            if path.absolute() == there.absolute():
                break
            with suppress(OSError):  # not empty, or another process was first
                path.rmdir()


def recorded_recipe(folder: Path, opens: Sequence[str]) -> Recipe:
    """The recipe of a run, its relative data paths starting where the recipe was.

    Raises:
        RecipeError: the folder is no run, or a file of the blocks ``opens`` is gone.
    """
    refuse_unfinished(folder, RECIPE, MODEL)
    origin = folder / CHECKPOINTS / ORIGIN
    base = Path(origin.read_text("utf-8")) if origin.is_file() else None
    return Recipe.load(folder / RECIPE, base=base, opens=opens)
