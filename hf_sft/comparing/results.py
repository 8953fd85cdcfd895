"""compare.json: every run of a comparison, and what its arms come to, as JSON values."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_sft.comparing.arms import overrides_of
from hf_sft.comparing.cells import Cell, sizes
from hf_sft.comparing.comparison import Comparison
from hf_sft.comparing.paired import CONFIDENCE, difference, spread
from hf_sft.output_folder import COMPARE, changed_data, data_of, is_finished
from hf_sft.recipe import Recipe
from hf_sft.reporting import drift
from hf_sft.reporting.report import Report
from hf_sft.reporting.report_page import main_split, shareable

FILE = "compare.json"
MEASURED = ("target", "retention", "seconds", "memory")  # of a run, by which arms are summed up


def collect(
    recipe: Recipe, cells: Sequence[Cell], problems: Mapping[str, str], seen: Sequence[str]
) -> dict[str, Any]:
    """What the folders of all cells say now.

    Args:
        problems: name of a cell that failed -> what went wrong.
        seen: names of the cells whose finished runs are known to be of this comparison.
    """
    asked = recipe.compare or Comparison()
    metric, greater = _metric(recipe)
    runs = [_run(cell, metric, problems, cell.name in seen) for cell in cells]
    key = next(iter(asked.sizes), None)
    return {
        "schema": 1,
        "title": recipe.name,
        "task": recipe.task.type,
        "metric": metric,
        "greater_is_better": greater,
        "split": next((run["split"] for run in runs if run["split"]), None),
        "retention_by": next((run["retention_by"] for run in runs if run["retention_by"]), None),
        "confidence": CONFIDENCE,
        "baseline": asked.held_against,
        "seeds": asked.seeds,
        "sizes": None if key is None else {"key": key, "values": asked.sizes[key]},
        "arms": {a: shareable(overrides_of(a, v, recipe.raw)) for a, v in asked.arms.items()},
        "other_rows": _other_rows(cells, seen, asked.held_against),
        "summary": _summary(runs, asked, greater),
        "runs": runs,
        "recipe": shareable({k: v for k, v in recipe.raw.items() if k != COMPARE}),
    }


def save(data: dict[str, Any], folder: Path) -> None:
    """Write compare.json whole or not at all."""
    partial = folder / f"{FILE}.partial"
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    partial.write_text(text + "\n", "utf-8")
    os.replace(partial, folder / FILE)


def _metric(recipe: Recipe) -> tuple[str, bool]:
    """What the target is measured by, and whether more of it is better."""
    task, chosen = recipe.task, recipe.training.get("metric_for_best_model")
    name = (chosen or task.selection_metric).removeprefix("eval_")
    if name == task.selection_metric.removeprefix("eval_"):
        return name, task.greater_is_better
    return name, not name.endswith("loss") and name not in task.lower_is_better


def _run(cell: Cell, metric: str, problems: Mapping[str, str], seen: bool) -> dict[str, Any]:
    """One cell: where it lies, how far it has come, and its numbers once it is finished."""
    found = {
        "arm": cell.arm,
        "seed": cell.seed,
        "size": cell.size,
        "folder": cell.place,
        "state": "failed" if cell.name in problems else "to run",
        "problem": problems.get(cell.name),
    }
    nothing = dict.fromkeys(("split", "retention_by", "trained_share", "fingerprint", *MEASURED))
    if not seen or not is_finished(cell.folder):
        return {**found, **nothing, "metrics": {}}
    data = Report.load(cell.folder).data
    split, kept = main_split(data), data["retention"]
    key = next((name for name in drift.KEPT if name in kept), None)
    trained, total = (sum(g[k] for g in data["groups"]) for k in ("trainable", "parameters"))
    metrics = data["metrics"].get(split, {})
    return {
        **found,
        "state": "finished",
        "split": split,
        "target": _number(metrics.get(metric)),
        "retention": _number(kept.get(key)),
        "retention_by": key,
        "seconds": data["timing"]["train_seconds"],
        "memory": data["peak_memory_bytes"],
        "trained_share": trained / total if total else 0.0,
        "fingerprint": data["source"]["fingerprint"],
        "metrics": metrics,
    }


def _other_rows(cells: Sequence[Cell], seen: Sequence[str], baseline: str) -> list[str]:
    """Arms whose rows are not the baseline's, so that their differences are of unlike data.

    Where an arm selects by scores, as with early stopping, a validation split is carved for it.
    """
    finished = [cell for cell in cells if cell.name in seen and is_finished(cell.folder)]
    base = {(c.seed, c.size): c.folder for c in finished if c.arm == baseline}
    pairs = [(c, base[c.seed, c.size]) for c in finished if (c.seed, c.size) in base]
    return sorted({cell.arm for cell, there in pairs if changed_data(cell.folder, data_of(there))})


def _summary(runs: list[dict], asked: Comparison, greater: bool) -> list[dict[str, Any]]:
    """Arm by arm for every size: means with their spread, and paired differences."""
    rows = []
    for _, size in sizes(asked):
        here = [_row(arm, size, runs, asked.held_against) for arm in asked.arms]
        for row in here:
            row["front"] = _is_best_somewhere(row, here, greater)
        rows += here
    return rows


def _row(arm: str, size: int | None, runs: list[dict], baseline: str) -> dict[str, Any]:
    own = {run["seed"]: run for run in runs if (run["arm"], run["size"]) == (arm, size)}
    base = {run["seed"]: run for run in runs if (run["arm"], run["size"]) == (baseline, size)}
    failed = sum(run["state"] == "failed" for run in own.values())
    row: dict[str, Any] = {"arm": arm, "size": size, "failed": failed}
    for key in MEASURED:
        row[key] = _as_json(spread([run[key] for run in own.values() if run[key] is not None]))
        pairs = [
            {seed: run[key] for seed, run in side.items() if run[key] is not None}
            for side in (own, base)
        ]
        row[f"{key}_difference"] = None if arm == baseline else _as_json(difference(*pairs))
    return row


def _is_best_somewhere(row: dict, rows: list[dict], greater: bool) -> bool:
    """Whether no other arm is at least as good in target and retention, and better in one."""

    def place(of: dict) -> tuple[float, float] | None:
        if of["target"] is None or of["retention"] is None:
            return None
        return (1 if greater else -1) * of["target"]["mean"], of["retention"]["mean"]

    own = place(row)
    others = [there for other in rows if (there := place(other)) is not None]
    return own is not None and not any(
        there != own and there[0] >= own[0] and there[1] >= own[1] for there in others
    )


def _number(value: Any) -> float | None:
    """A metric that can be averaged; None for words such as ``inf``."""
    return float(value) if isinstance(value, int | float) else None


def _as_json(found: Any) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
