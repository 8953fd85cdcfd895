"""One trial in a process of its own: a fresh model, and memory that ends with it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import TrainerCallback

from hf_sft import unlost
from hf_sft.averages import take_average_
from hf_sft.comparing.side_processes import context, end, not_interrupted, obeying, problem
from hf_sft.errors import DataError
from hf_sft.output_folder import CHECKPOINTS, nothing_left
from hf_sft.recipe import Recipe
from hf_sft.reporting import outcome
from hf_sft.reporting.drift import KEPT
from hf_sft.running import prepare
from hf_sft.training.run_record import refuse_other_source
from hf_sft.training.whole_checkpoints import newest_whole_checkpoint
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for entry in state.log_history:  # of the part that was stopped
            if f"eval_{self.metric}" in entry:
                self._tell(entry["step"], entry)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._tell(state.global_step, kwargs["metrics"])

    def _tell(self, step: int, metrics: dict[str, Any]) -> None:
        enough = False
        with suppress(EOFError, OSError):  # the search was stopped, and this step is saved next
            self.line.send((step, metrics.get(f"eval_{self.metric}")))
            enough = self.line.recv()
        if enough:
            raise Pruned


def train(trial: Trial, prunes: Callable[[int, float], bool]) -> dict[str, Any]:
    """Run it; what came of it: ``target`` and ``retention``, or ``pruned``, or ``problem``.

    ``prunes`` hears step and score of every evaluation, and says whether that is enough.
    """
    ours, theirs = context().Pipe()
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    process = context().Process(target=_obey, args=(trial, theirs))
    found: dict[str, Any] = {}
    try:
        with not_interrupted():
            process.start()
        theirs.close()
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
        ours.close()  # it may be waiting for an answer
        end([process])
    return found


def _obey(trial: Trial, line: connection.Connection) -> None:
    with obeying(trial.log):
        recipe = Recipe.load(trial.path, trial.overrides, base=trial.base)
        try:
            line.send(measured(recipe, trial.metric, Tells(line, trial.metric)))
        except Pruned:
            line.send({"pruned": True})


def measured(recipe: Recipe, metric: str, tells: TrainerCallback | None = None) -> dict[str, Any]:
    """Train, and measure on validation; test rows are neither evaluated nor looked at.

    What was begun in the recipe's folder goes on from its newest whole checkpoint.

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
        resume = newest_whole_checkpoint(recipe.output_dir / CHECKPOINTS)
        if resume is not None:
            refuse_other_source(resume, prepared.trainer.starting_point.fingerprint)
        unlost.train(prepared.trainer, None if resume is None else str(resume))
        if tells is not None:
            prepared.trainer.remove_callback(tells)
        take_average_(prepared.trainer)
        splits = {k: v for k, v in prepared.encoded.items() if k != "test"}
        prepared = replace(prepared, encoded=DatasetDict(splits))
        metrics = outcome.evaluate(recipe.task, prepared)[0]["validation"]
        kept, _ = outcome.kept(prepared)
    retention = next((kept[key] for key in KEPT if key in kept), None)
    return {"target": metrics.get(metric), "retention": retention}
