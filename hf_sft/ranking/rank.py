"""rank(recipe, models) -> rows: candidate sources by how well they fit the target, untrained."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from pydantic import ValidationError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_sft.errors import RecipeError, SourceError, UserError, listing
from hf_sft.models import LoadedModel, ModelSource, load_model
from hf_sft.ranking import stored_features
from hf_sft.ranking.features import Features, extract, identity
from hf_sft.ranking.transferability import h_score, leep, logme, nce
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import model_block
from hf_sft.running import load_data
from hf_sft.table import table

SCORES = {"logme": "LogME", "h_score": "H-score", "leep": "LEEP", "nce": "NCE"}
OVERRIDE = re.compile(r"^\w+(\.\w+)*=")
NOT_SHOWN = {
    "name",
    "sha256",
    "keys",
    "fresh",
    "unused",
    "layer_groups",
}  # do not tell models apart
ONE_OF_MANY = "single_label_classification"  # transformers' word for a head over classes
Candidate = str | dict | ModelSource


@dataclass(frozen=True)
class Ranked:
    """A candidate with its scores, None for those that need a head it does not have.

    Attributes:
        width: d, the number of features.
        seconds: loading, features and scores together.
        stored: the features came from the disk.
        problem: why there are no scores.
    """

    name: str
    scores: dict[str, float | None] = field(default_factory=dict)
    width: int = 0
    seconds: float = 0.0
    stored: bool = False
    problem: str | None = None


def rank(recipe: Recipe, models: Sequence[Candidate]) -> list[Ranked]:
    """Score every candidate on the recipe's training rows, the highest LogME first; trains nothing.

    Args:
        recipe: its task and data are used, its caps on the data included; its model is not.
        models: what may stand in ``model.name``, or whole ``model`` blocks (YAML or a mapping). The
            name of the recipe's own model means its whole block.

    Raises:
        UserError: the data cannot be read, or no candidate can be scored. One that cannot be is
            otherwise a row with its problem, after all the others.
    """
    if recipe.task.stratum is None:
        raise RecipeError(
            f"task.type: sources are ranked by how they tell classes apart; {recipe.task.type} has "
            "none. Compare short runs instead."
        )
    rows = load_data(recipe)["train"]
    found = [_ranked(recipe, candidate, rows) for candidate in models]
    if all(row.problem for row in found):
        raise SourceError("\n".join(["--models: none can be ranked.", *problems(found)]))
    return sorted(found, key=lambda row: (row.problem is not None, -row.scores.get("logme", 0.0)))


def show(found: Iterable[Ranked]) -> str:
    """A table of the scores, and below it what could not be scored."""
    lines = [
        [
            row.name,
            *("-" if row.scores[key] is None else f"{row.scores[key]:.4f}" for key in SCORES),
            str(row.width),
            f"{row.seconds:.1f} s{' (stored)' if row.stored else ''}",
        ]
        for row in found
        if row.problem is None
    ]
    return "\n".join([table(["model", *SCORES.values(), "width", "time"], lines), *problems(found)])


def problems(found: Iterable[Ranked]) -> list[str]:
    """One line for each candidate without scores."""
    return [f"{row.name}: {row.problem}" for row in found if row.problem is not None]


def overrides_among(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(candidates, overrides): ``a.b=c`` may stand behind the candidates too."""
    late = [word for word in words if OVERRIDE.match(word)]
    return [word for word in words if word not in late], late


def _ranked(recipe: Recipe, candidate: Candidate, rows: Dataset) -> Ranked:
    started = time.perf_counter()
    name = str(candidate)
    try:
        source = _source(recipe, candidate)
        name = _name(source)
        found, stored = _features(recipe, source, rows, name)
        scores = _scores(found, np.asarray(rows[recipe.task.stratum]))
    except UserError as error:
        return Ranked(name, problem=str(error))
    seconds = time.perf_counter() - started
    return Ranked(name, scores, found.features.shape[1], seconds, stored)


def _source(recipe: Recipe, candidate: Candidate) -> ModelSource:
    """The ``model`` block that a candidate stands for."""
    if isinstance(candidate, ModelSource):
        return candidate
    if candidate == recipe.model.name:
        return recipe.model
    block = model_block(candidate) if isinstance(candidate, str) else candidate
    try:
        return ModelSource.model_validate(block)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        keys = listing(ModelSource.model_fields)
        raise SourceError(f"{'; '.join(wrong)}. Keys of a model: {keys}.") from error


def _name(source: ModelSource) -> str:
    """The candidate's name, with the settings that tell it from others of that name."""
    settings = source.model_dump(exclude_defaults=True, exclude=NOT_SHOWN)
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{source.name} ({shown})" if shown else source.name


def _features(
    recipe: Recipe, source: ModelSource, rows: Dataset, name: str
) -> tuple[Features, bool]:
    """Features of all rows, and whether they were on the disk."""
    task = recipe.task
    transformers.set_seed(recipe.training.get("seed", 42))  # embeddings of added tokens are drawn
    loaded = load_model(source, task, rows.features[task.stratum].names, recipe.locate)
    model, head = _with_its_own_head(recipe, loaded)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    fresh = () if head else loaded.fresh
    encoded = task.encode(rows, loaded.processor, model.config)
    size = recipe.training.get("per_device_eval_batch_size", 32)
    batches = DataLoader(encoded, size, collate_fn=task.collator(loaded.processor))
    key = identity(model, fresh, batches, head)
    if (stored := stored_features.read(key)) is not None:
        return stored, True
    quiet = bool(recipe.training.get("disable_tqdm"))
    found = extract(model, tqdm(batches, desc=name, unit="batch", disable=quiet), head)
    stored_features.write(key, found)
    return found, False


def _with_its_own_head(recipe: Recipe, loaded: LoadedModel) -> tuple[Any, bool]:
    """The source with the head it came with, if that tells classes apart; else with the new one.

    A head that never saw the tokens that the recipe adds is not asked either.
    """
    if loaded.rows:
        return loaded.model, False
    original, has_head = loaded.original()
    kind = getattr(original.config, "problem_type", None)
    if not has_head or original.config.num_labels < 2 or kind not in (None, ONE_OF_MANY):
        return loaded.model, False
    recipe.task.prepare(loaded.processor, original)
    return original, True


def _scores(found: Features, labels: np.ndarray) -> dict[str, float | None]:
    features, answers = found.features.numpy(), found.probabilities
    return {
        "logme": logme(features, labels),
        "h_score": h_score(features, labels),
        "leep": None if answers is None else leep(answers.numpy(), labels),
        "nce": None if answers is None else nce(answers.argmax(-1).numpy(), labels),
    }
