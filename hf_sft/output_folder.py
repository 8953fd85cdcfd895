"""The folder of a run: whose it is, where it goes on, and what is written there when."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe, read
from hf_sft.trainer import recorded_source

log = logging.getLogger(__name__)

RECIPE, REPORT, CHECKPOINTS, MODEL = "recipe.yaml", "report.json", "checkpoints", "model"
OURS = (RECIPE, REPORT, "report.html", "README.md", MODEL, CHECKPOINTS)
ORIGIN = "recipe_folder.txt"  # in checkpoints/, which is never published


def claim(recipe: Recipe, overwrite: bool) -> str | None:
    """The checkpoint to go on from, or None to start; refuses a folder that is not this run's.

    Raises:
        RecipeError: the folder holds a finished run, another run, or something else altogether.
    """
    folder = recipe.output_dir
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return None
    remedy = "Choose another training.output_dir, or start anew with --overwrite."
    if not (folder / RECIPE).exists():
        raise RecipeError(f"training.output_dir: '{folder}' holds other files. {remedy}")
    if identity(read(folder / RECIPE)) != identity(recipe.raw):
        raise RecipeError(
            f"training.output_dir: '{folder}' holds a run of a different recipe. {remedy}"
        )
    if (folder / REPORT).exists():
        raise RecipeError(f"training.output_dir: '{folder}' holds a finished run. {remedy}")
    checkpoint = newest_whole_checkpoint(folder / CHECKPOINTS)
    if checkpoint is not None:
        log.warning("Going on from %s.", checkpoint)
    return str(checkpoint) if checkpoint is not None else None


def identity(raw: dict[str, Any]) -> dict[str, Any]:
    """What makes two recipes the same run: everything but the place and the wish to resume."""
    training = dict(raw.get("training") or {})
    for key in ("output_dir", "resume_from_checkpoint"):
        training.pop(key, None)
    return json.loads(json.dumps({**raw, "training": training}, sort_keys=True, default=str))


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint whose trainer_state.json, the file written last, is whole."""
    if not folder.is_dir():
        return None
    found = [p for p in folder.iterdir() if p.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")]
    steps = {int(p.name.rpartition("-")[2]): p for p in found if p.name.rpartition("-")[2].isdigit()}
    for step in sorted(steps, reverse=True):
        try:
            if recorded_source(steps[step]) is not None:
                return steps[step]
        except (OSError, ValueError):
            log.warning("'%s' is not whole and is passed over.", steps[step].name)
    return None


def record(recipe: Recipe, args: TrainingArguments, overwrite: bool) -> None:
    """Write the resolved recipe; with ``overwrite``, take away what an earlier run left."""
    folder = recipe.output_dir
    with args.main_process_first(desc="recording the recipe"):
        if args.process_index != 0:
            return
        if overwrite:
            clear(folder)
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(recipe.raw, sort_keys=False, allow_unicode=True)
        (folder / RECIPE).write_text(text, "utf-8")
        origin = str(recipe.path.resolve().parent)
        (folder / CHECKPOINTS / ORIGIN).write_text(origin, "utf-8")


def clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else that may lie there."""
    for name in OURS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def recorded_recipe(folder: Path) -> Recipe:
    """The recipe of a run, its relative data paths starting where the recipe was.

    Raises:
        RecipeError: the folder is no run.
    """
    if not (folder / RECIPE).is_file() or not (folder / MODEL).is_dir():
        raise RecipeError(f"'{folder}' is no finished run: {RECIPE} or {MODEL}/ is missing there.")
    origin = folder / CHECKPOINTS / ORIGIN
    base = Path(origin.read_text("utf-8")) if origin.is_file() else None
    return Recipe.load(folder / RECIPE, base=base)
