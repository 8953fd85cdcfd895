"""The study of a search on disk: Optuna's, of which one process writes at a time."""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

from hf_sft.errors import RecipeError
from hf_sft.searching.space import Search

FILE = "study.db"
CONSTRAINT = "constraint"
FOLDER = "folder"  # of a trial that goes on where an earlier one was stopped
SECONDS = "seconds"  # that a trial has taken, those of the one it goes on with too
MISSING = (
    "search: the package optuna is not installed. Install it with pip install 'hf-sft[search]'."
)


def library() -> Any:
    """Optuna, quiet.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise RecipeError(MISSING) from error
    optuna.logging.set_verbosity(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def opened(folder: Path, asked: Search, greater: bool, identity: dict[str, Any]) -> Any:
    """The study in ``folder``; trials that a stopped search left under way are to go on.

    TPE, which prefers trials that keep enough where ``asked.retention`` says how much, and the
    median rule for pruning. Bergstra et al. 2011.

    Raises:
        RecipeError: it is the study of another search.
    """
    optuna = library()
    from sqlalchemy import URL  # noqa: PLC0415 (comes with optuna)

    place = URL.create("sqlite", database=str(folder.resolve() / FILE))
    prunes = optuna.pruners.MedianPruner() if asked.prune else optuna.pruners.NopPruner()
    study = optuna.create_study(
        storage=place.render_as_string(hide_password=False),
        study_name="search",
        pruner=prunes,
        direction="maximize" if greater else "minimize",
        load_if_exists=True,
    )
    known = json.loads(json.dumps(identity, sort_keys=True, default=str))
    if study.user_attrs.get("identity", known) != known:
        raise RecipeError(
            f"search: '{folder}' holds the search of another recipe or of other data. Choose "
            "another training.output_dir, or begin anew with --overwrite."
        )
    study.set_user_attr("identity", known)
    study.sampler = optuna.samplers.TPESampler(
        seed=asked.seed + len(study.trials),  # else what is gone on with would be drawn again
        constraints_func=None if asked.retention is None else _constraint,
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(
            trial.params, user_attrs={FOLDER: folder_of(trial), SECONDS: taken(trial)}
        )
    return study


def folder_of(trial: Any) -> str:
    """The name of a trial's folder: its own, or that of the one it goes on with."""
    return trial.user_attrs.get(FOLDER, f"trial-{trial.number}")


def taken(trial: Any) -> float:
    """The seconds that a trial has taken as far as is known."""
    return trial.user_attrs.get(SECONDS, 0.0)


def _constraint(trial: Any) -> tuple[float]:
    """What lacks of the retention that is asked for; above 0 it is not met."""
    return (trial.user_attrs.get(CONSTRAINT, 0.0),)


def tell(study: Any, trial: Any, found: dict[str, Any], least: float | None) -> None:
    """Write down what came of a trial."""
    states = library().trial.TrialState
    for key in ("retention", "problem"):
        trial.set_user_attr(key, found.get(key))
    trial.set_user_attr("ended", True)
    if found.get("pruned"):
        study.tell(trial, state=states.PRUNED)
        return
    target = found.get("target")
    if not isinstance(target, int | float) or not math.isfinite(target):
        trial.set_user_attr("problem", found.get("problem") or "its score is not a finite number")
        study.tell(trial, state=states.FAIL)
        return
    if least is not None:
        trial.set_user_attr(CONSTRAINT, least - (found.get("retention") or 0.0))
    study.tell(trial, float(target))


def rows(study: Any) -> list[dict[str, Any]]:
    """The trials that have ended by themselves, as they stand in search.json."""
    return [
        {
            "number": trial.number,
            "state": {"COMPLETE": "finished", "PRUNED": "pruned"}.get(trial.state.name, "failed"),
            "params": trial.params,
            "target": trial.value if trial.state.name == "COMPLETE" else None,
            "retention": trial.user_attrs.get("retention"),
            "seen": [[step, score] for step, score in sorted(trial.intermediate_values.items())],
            "problem": trial.user_attrs.get("problem"),
            "seconds": taken(trial),
        }
        for trial in study.trials
        if trial.user_attrs.get("ended")
    ]


def importances(study: Any) -> dict[str, float]:
    """Share of the target's variance that each key explains (fANOVA); nothing for few trials."""
    optuna = library()
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
