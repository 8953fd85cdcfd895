"""search: trials one after the other, what they come to, and the best one as a recipe."""

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_sft.data_identity import data_identity
from hf_sft.errors import RecipeError
from hf_sft.output_folder import SEARCH, identity
from hf_sft.recipe import Recipe
from hf_sft.recipe_text import as_override, dump
from hf_sft.reporting.outcome import strict
from hf_sft.reporting.report_page import shareable
from hf_sft.running import load_data
from hf_sft.searching import search_page
from hf_sft.searching import study as studies
from hf_sft.searching.best import as_recipe, best, only_the_run
from hf_sft.searching.space import Range, Search, space, suggested, words
from hf_sft.searching.trial_process import Trial, train
from hf_sft.training_arguments import training_arguments

log = logging.getLogger(__name__)


def search(
    path: Path, overrides: Sequence[str] = (), overwrite: bool = False
) -> tuple[dict[str, Any], Path]:
    """Run the trials that are missing; the record that search.json holds, and its folder.

    Every trial trains a fresh model in a process of its own. After a stop the same call goes on;
    a trial that was under way goes on from its newest checkpoint. ``overwrite`` begins anew.

    Raises:
        RecipeError: the recipe or a value of the space is wrong, optuna is missing, the folder
            holds another search, or another process searches there.
    """
    studies.library()
    recipe = Recipe.load(path, overrides)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RecipeError("search starts processes itself: run it without a launcher.")
    searched = Searched(recipe, overrides)
    searched.place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(searched.place / "lock", timeout=0):
            return searched.run(overwrite), searched.place
    except Timeout as error:
        raise RecipeError(f"search: another process searches in '{searched.place}'.") from error


class Searched:
    """A recipe, what varies, and how a trial's recipe comes of it."""

    def __init__(self, recipe: Recipe, overrides: Sequence[str]):
        self.recipe, self.asked = recipe, recipe.search or Search()
        self.over = space(recipe.raw, self.asked)
        self.overrides = (*overrides, *self._selecting())
        for key, values in self.over.items():
            shown = values.ends(key) if isinstance(values, Range) else words(key, values)
            for word in shown:
                self.trial([word], "try")
        args = training_arguments(self.trial([], "try"))
        self.metric = args.metric_for_best_model or recipe.task.selection_metric
        self.metric = self.metric.removeprefix("eval_")
        self.greater = bool(args.greater_is_better)
        self.identity = {
            "recipe": identity(recipe.raw),
            "search": self.asked.model_dump(exclude={"trials"}),
            "data": data_identity(load_data(self.trial([], "try"))),
        }

    @property
    def place(self) -> Path:
        """The search's folder, inside of the recipe's own."""
        return self.recipe.output_dir / SEARCH

    def _selecting(self) -> list[str]:
        """A trial keeps its best checkpoint, which lets validation rows be carved."""
        training, words = self.recipe.training, {}
        if self.asked.metric is not None:
            words["training.metric_for_best_model"] = self.asked.metric
        if not self.recipe.keeps_best and self.recipe.averaging is None:
            words["training.load_best_model_at_end"] = True
            if str(training.get("save_strategy", "epoch")) == "no":
                words["training.save_strategy"] = "epoch"
            if str(training.get("eval_strategy", "epoch")) == "no":
                words["training.eval_strategy"] = "epoch"
        if training.get("push_to_hub"):
            words["training.push_to_hub"] = False
        return [as_override(key, value) for key, value in words.items()]

    def words(self, own: Sequence[str], name: str) -> tuple[str, ...]:
        """The overrides of a trial."""
        where = as_override("training.output_dir", str(self.place / name))
        return (*self.overrides, *own, where, "search=null", "compare=null")

    def trial(self, own: Sequence[str], name: str) -> Recipe:
        """Its recipe, checked."""
        try:
            return Recipe.load(self.recipe.path, self.words(own, name), base=self.recipe.base)
        except RecipeError as error:
            raise RecipeError(f"search.over: with {' '.join(own) or 'nothing'}: {error}") from error

    def run(self, overwrite: bool) -> dict[str, Any]:
        """The trials that are missing, one after the other."""
        if overwrite:
            (self.place / studies.FILE).unlink(missing_ok=True)
        study = studies.opened(self.place, self.asked, self.greater, self.identity)
        data = self.record(study)
        while len(data["trials"]) < self.asked.trials:
            trial = study.ask()
            found = self._one(trial)
            studies.tell(study, trial, found, self.asked.retention)
            data = self.record(study)
            row = data["trials"][-1]
            told = row["problem"] or f"{self.metric} {row['target']}"
            told = told if row["state"] != "pruned" else "below the median of those before it"
            log.warning(
                "%d of %d: trial %d %s: %s", len(data["trials"]), self.asked.trials,
                row["number"], row["state"], told,
            )  # fmt: skip
        return data

    def _one(self, trial: Any) -> dict[str, Any]:
        own, name = suggested(self.over, trial), studies.folder_of(trial)
        if studies.FOLDER not in trial.user_attrs:
            shutil.rmtree(self.place / name, ignore_errors=True)
        began = time.monotonic() - studies.taken(trial)

        def count() -> None:
            trial.set_user_attr(studies.SECONDS, time.monotonic() - began)

        def prunes(step: int, score: float) -> bool:
            count()  # what comes after it is lost if the search is killed
            trial.report(score, step)
            return trial.should_prune()

        file = self.place / f"trial-{trial.number}.log"
        order = Trial(self.recipe.path, self.recipe.base, self.words(own, name), self.metric, file)
        try:
            found = train(order, prunes)
        finally:
            count()
        shutil.rmtree(self.place / name, ignore_errors=True)  # what was stopped has not come here
        return found

    def record(self, study: Any) -> dict[str, Any]:
        """Write search.json, the page and the best recipe as things stand."""
        rows = strict(studies.rows(study))  # a retention that is not defined is none
        ended = len(rows) >= self.asked.trials  # optuna's fANOVA keeps its trees until we end
        chosen = best(rows, self.greater, self.asked.retention)
        data = {
            "schema": 1,
            "title": self.recipe.name,
            "task": self.recipe.task.type,
            "metric": self.metric,
            "greater_is_better": self.greater,
            "retention_at_least": self.asked.retention,
            "over": {k: _plain(v) for k, v in self.over.items()},
            "asked": self.asked.trials,
            "best": None if chosen is None else chosen["number"],
            "importances": studies.importances(study) if ended else {},
            "trials": rows,
        }
        text = None
        if chosen is not None:
            own = [
                value if isinstance(self.over[key], list) else as_override(key, value)
                for key, value in chosen["params"].items()
            ]
            trial = self.trial(own, "best")
            text = dump(as_recipe(trial, self.place / "best", self.place))
            data["recipe"] = shareable(only_the_run(trial))
        _write(self.place / "best.yaml", text)
        _write(
            self.place / "search.json",
            json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False),
        )
        _write(self.place / "search.html", search_page.render(data))
        return data


def _plain(values: Any) -> Any:
    return values.model_dump() if isinstance(values, Range) else values


def _write(file: Path, text: str | None) -> None:
    """Whole or not at all; None takes the file away."""
    if text is None:
        file.unlink(missing_ok=True)
        return
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, "utf-8")
    os.replace(partial, file)
