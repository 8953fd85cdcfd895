"""soup: the average of runs that were tuned from one source."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_sft import saved
from hf_sft.errors import SourceError, UserError
from hf_sft.table import table
from hf_sft.weights import derived
from hf_sft.weights.origin import Origin
from hf_sft.weights.weight_space import Tasting, copied, greedy_soup, uniform_soup

METHODS = ("uniform", "greedy")


def soup(runs: Sequence[Path], output: Path, method: str = "uniform") -> str:
    """Average the weights of ``runs`` and leave the model in ``output``.

    ``greedy`` keeps the runs that do not spoil the soup, best first, by rows that none of them has
    trained on; ``uniform`` keeps all. Test is measured once, for the soup.

    Returns:
        What went in and what came out, as a table.

    Raises:
        UserError: the runs do not belong together; nothing has been written then.
    """
    _refuse_settings(runs, method)
    with derived.whole_folder(output) as folder:
        origin = Origin.of(runs[0])
        for run in runs[1:]:
            origin.given.append(_weights(origin, run))
        state, tastings = _mixed(origin, method)
        made = _finish(origin, runs, method, state, tastings)
        record = derived.record("soup", origin.facts, made.pop("metrics"), made)
        derived.save(folder, "soup", runs[0], origin.recipe, origin.model, origin.processor, record)
    return summary(record)


def _weights(origin: Origin, run: Path) -> dict[str, Tensor]:
    """θ of another run, which must be a sibling of the first."""
    facts = derived.facts(run)
    recipe, model, _ = saved.load(run)
    first = origin.recipe
    differs = [
        what
        for what, mine, theirs in (
            ("source (fingerprint)", *(_fingerprint(f) for f in (origin.facts, facts))),
            ("labels", *(first.task.trained_names(m.config) for m in (origin.model, model))),
            ("task block", first.task, recipe.task),
            ("data block", first.data, recipe.data),
            ("validation split", first.selects, recipe.selects),
        )
        if mine != theirs
    ]
    if differs:
        raise SourceError(
            f"soup: '{run}' has another {', another '.join(differs)} than '{origin.run}'. A soup "
            "takes runs of one source on one data set; leave it out."
        )
    return copied(model.state_dict())


def _fingerprint(facts: Mapping[str, Any]) -> str:
    return facts["source"]["fingerprint"]


def _mixed(origin: Origin, method: str) -> tuple[dict[str, Tensor], list[Tasting]]:
    def score(state: Mapping[str, Tensor]) -> float:
        origin.put(state)
        return origin.sign * origin.measure()[origin.metric]

    if method == "greedy":
        origin.held_out.refuse_seen()
        state, tastings = greedy_soup(origin.given, score)
    else:
        state = uniform_soup(origin.given)  # unlike runs are told before anything is measured
        alone, together = [score(given) for given in origin.given], score(state)
        tastings = [Tasting(i, found, together, True) for i, found in enumerate(alone)]
    signed = [
        replace(t, alone=origin.sign * t.alone, together=origin.sign * t.together) for t in tastings
    ]
    return state, signed


def _finish(
    origin: Origin,
    runs: Sequence[Path],
    method: str,
    state: dict[str, Tensor],
    tastings: list[Tasting],
) -> dict[str, Any]:
    measured_again, rows = origin.put(state), origin.held_out
    kept = sum(tasting.kept for tasting in tastings)
    return {
        "metrics": {"test": origin.measure("test")} if "test" in origin.data else {},
        "method": f"{method}-soup",
        "metric": origin.metric,
        "rows": rows.origin,
        "row_count": len(rows.rows),
        "rows_unseen": rows.unseen,
        "retention": origin.retention(),
        "runs": [_offered(runs[tasting.index], tasting, origin.metric) for tasting in tastings],
        "statistics_measured_again": len(measured_again),
        "how": f"The average of the weights of {kept} runs fine-tuned from one source "
        f"({method} soup, {len(runs)} runs offered).",
    }


def _offered(run: Path, tasting: Tasting, metric: str) -> dict[str, Any]:
    scores = {key: value for key, value in asdict(tasting).items() if key != "index"}
    test = derived.facts(run)["metrics"].get("test", {}).get(metric)
    return {"name": run.resolve().name, **scores, "test": test}


def summary(record: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    made, metric = record["soup"], record["soup"]["metric"]
    rows = [
        [
            run["name"],
            f"{run['alone']:.4f}",
            f"{run['together']:.4f}",
            "yes" if run["kept"] else "no",
            "-" if run["test"] is None else f"{run['test']:.4f}",
        ]
        for run in made["runs"]
    ]
    test = record["metrics"].get("test")
    return "\n".join(
        [
            table(["run", f"{metric} alone", "soup with it", "kept", "test alone"], rows),
            "",
            f"{made['method']}, measured on {made['row_count']} {made['rows']}.",
            f"test {metric} {test[metric]:.4f}" if test else "There is no test split.",
        ]
    )


def _refuse_settings(runs: Sequence[Path], method: str) -> None:
    if method not in METHODS:
        raise UserError(f"--method: {method!r} is not known. Choices: {', '.join(METHODS)}.")
    if len({run.resolve() for run in runs}) < 2:
        raise UserError("soup: name at least two different runs.")
