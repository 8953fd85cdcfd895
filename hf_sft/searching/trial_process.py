"""One trial in a process of its own: a fresh model, and memory that ends with it."""

import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from hf_sft import unlost
from hf_sft.averages import take_average_
from hf_sft.comparing.side_processes import MESSAGE, PATIENCE, USERS, context, problem, redirect
from hf_sft.errors import DataError, UserError
from hf_sft.output_folder import nothing_left
from hf_sft.recipe import Recipe
from hf_sft.reporting import outcome
from hf_sft.reporting.drift import KEPT
from hf_sft.running import prepare
from hf_sft.training_arguments import training_arguments


@dataclass(frozen=True)
class Trial:
    """What a process is to train, and the log that takes what it prints."""

    path: Path
    base: Path
    overrides: tuple[str, ...]
    metric: str
    log: Path


class Pruned(Exception):  # noqa: N818 (no error: the trial has been seen enough of)
    """The search has told the trial to end."""


class Tells(TrainerCallback):
    """Tells every evaluation to the search, and ends the training when it says so."""

    def __init__(self, line: connection.Connection, metric: str):
        self.line, self.metric = line, metric

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        value = kwargs["metrics"].get(f"eval_{self.metric}")
        self.line.send((state.global_step, value))
        if self.line.recv():
            raise Pruned


def train(trial: Trial, prunes: Callable[[int, float], bool]) -> dict[str, Any]:
    """Run it; what came of it: ``target`` and ``retention``, or ``pruned``, or ``problem``.

    ``prunes`` hears step and score of every evaluation, and says whether that is enough.
    """
    ours, theirs = context().Pipe()
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    process = context().Process(target=_obey, args=(trial, theirs))
    process.start()
    theirs.close()
    found: dict[str, Any] = {}
    try:
        while not found:
            message = ours.recv()
            if isinstance(message, dict):
                found = message
            else:
                step, value = message
                ours.send(value is not None and prunes(step, float(value)))
        process.join()
    except EOFError:
        process.join()
        found = {"problem": problem(process.exitcode, trial.log) or "it ended early"}
    finally:
        process.terminate()
        process.join(PATIENCE)
        process.kill()
    return found


def _obey(trial: Trial, line: connection.Connection) -> None:
    redirect(trial.log)
    recipe = None
    try:
        recipe = Recipe.load(trial.path, trial.overrides, base=trial.base)
        line.send(measured(recipe, trial.metric, Tells(line, trial.metric)))
    except Pruned:
        line.send({"pruned": True})
    except UserError as error:
        print(f"{MESSAGE}{error}", file=sys.stderr)  # noqa: T201 (into the log)
        sys.exit(USERS)
    except Exception:  # whatever it is: it is told, with its place in the log
        traceback.print_exc()
        sys.exit(1)
    finally:
        if recipe is not None:
            shutil.rmtree(recipe.output_dir, ignore_errors=True)


def measured(recipe: Recipe, metric: str, tells: TrainerCallback | None = None) -> dict[str, Any]:
    """Train, and measure on validation; test rows are neither evaluated nor looked at.

    Raises:
        DataError: there are no rows for validation.
    """
    with nothing_left(recipe.output_dir):
        prepared = prepare(recipe, training_arguments(recipe))
        if "validation" not in prepared.encoded:
            raise DataError(
                "search: trials are chosen by a validation split, and there is none. Name one in "
                "data, or set data.validation_fraction."
            )
        if tells is not None:
            prepared.trainer.add_callback(tells)
        unlost.train(prepared.trainer, None)
        if tells is not None:
            prepared.trainer.remove_callback(tells)
        take_average_(prepared.trainer)
        splits = {k: v for k, v in prepared.encoded.items() if k != "test"}
        prepared = replace(prepared, encoded=DatasetDict(splits))
        metrics = outcome.evaluate(recipe.task, prepared)[0]["validation"]
        kept, _ = outcome.kept(prepared)
    retention = next((kept[key] for key in KEPT if key in kept), None)
    return {"target": metrics.get(metric), "retention": retention}
