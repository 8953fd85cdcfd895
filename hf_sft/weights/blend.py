"""blend: a run's weights taken part of the way back to its source, the share chosen by data."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from hf_sft.errors import UserError
from hf_sft.table import table
from hf_sft.weights import blend_page, derived
from hf_sft.weights.origin import Origin
from hf_sft.weights.weight_space import lines, wise_ft

METHODS = ("wise-ft", "lines")
STATISTICS = ("measured", "interpolated")
STEPS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Point:
    """The model at one share α: the target metric, what is kept of the source, the loss."""

    alpha: float
    target: float
    retention: float | None
    loss: float


def blend(
    run: Path,
    output: Path,
    method: str = "wise-ft",
    alpha: float | None = None,
    retain: float | None = None,
    statistics: str = "measured",
) -> str:
    """Walk from the source to the run, choose α, leave the model in ``output``; the path as text.

    The path is measured on rows held out from training, never on test, which is measured once, for
    the chosen α: ``alpha``; else the best target among the shares that keep at least ``retain`` of
    the source's function; else the best target. ``lines`` takes β = 1 − α. Batch-norm statistics
    are ``measured`` again on training rows, which serves the target, or ``interpolated`` like the
    weights, which keeps more of the source.

    Raises:
        UserError: anything the user can put right; nothing has been written then.
    """
    _refuse_settings(method, alpha, retain, statistics)
    with derived.whole_folder(output) as folder:
        origin = Origin.of(run)
        if alpha is None:
            origin.held_out.refuse_seen()
        way = Way(origin, method, statistics == "measured")
        path = walk(way, sorted({*STEPS, *([] if alpha is None else [alpha])}))
        share = choose(path, retain, origin.sign) if alpha is None else alpha
        made = finish(way, path, share, reason(origin.metric, alpha, retain))
        record = derived.record("blend", origin.facts, made.pop("metrics"), made)
        derived.save(folder, "blend", run, origin.recipe, origin.model, origin.processor, record)
        (folder / "blend.html").write_text(blend_page.render(record), "utf-8")
    return summary(record)


@dataclass(frozen=True)
class Way:
    """From a source to its run."""

    origin: Origin
    method: str
    measure_again: bool

    def weights(self, alpha: float) -> dict[str, Tensor]:
        """θ(α)."""
        source, tuned, loaded = self.origin.source, self.origin.tuned, self.origin.loaded
        if self.method == "wise-ft":
            return wise_ft(source, tuned, alpha, loaded.fresh)
        return lines(source, tuned, loaded.groups, alpha, 1 - alpha)

    def go(self, alpha: float) -> list[str]:
        """Put θ(α) on the bench; names of the batch norms that were measured again."""
        return self.origin.put(self.weights(alpha), self.measure_again)


def walk(way: Way, shares: Sequence[float]) -> list[Point]:
    """Every share measured on the held-out rows."""
    origin, path = way.origin, []
    for alpha in tqdm(shares, "from source to run", leave=False):
        way.go(alpha)
        found = origin.measure()
        path.append(Point(alpha, found[origin.metric], origin.retention(), found["loss"]))
    return path


def choose(path: Sequence[Point], retain: float | None, sign: int = 1) -> float:
    """The share with the best target that keeps enough; of equals, the one nearest the source.

    ``sign``: −1 where the least target is the best one.

    Raises:
        UserError: none keeps enough.
    """
    allowed = [
        point
        for point in path
        if retain is None or (point.retention is not None and point.retention >= retain)
    ]
    if not allowed:
        known = [point.retention for point in path if point.retention is not None]
        most = f"the most is {max(known):.4f}" if known else "it could not be measured here"
        raise UserError(
            f"--retain: no share keeps {retain} of the source's function; {most}. Ask for less, or "
            "take --method wise-ft, which goes back to the source itself, or, with batch norm, "
            "--statistics interpolated."
        )
    best = max((p.target for p in allowed), key=lambda x: -math.inf if math.isnan(x) else sign * x)
    return min(point.alpha for point in allowed if point.target == best)


def reason(metric: str, alpha: float | None, retain: float | None) -> str:
    """Why this share."""
    if alpha is not None:
        return "as asked"
    best = f"the best {metric.replace('_', ' ')}"
    return best if retain is None else f"{best} with a retention of at least {retain:g}"


def finish(way: Way, path: list[Point], share: float, why: str) -> dict[str, Any]:
    """Put the chosen share on the bench and measure it on test, once."""
    origin, measured_again = way.origin, way.go(share)
    before = origin.facts["metrics"].get("test")
    metrics = {}
    if "test" in origin.data:
        metrics["test"] = origin.measure("test")
        metrics |= {"test, the run itself": before} if before else {}
    rows = origin.held_out
    return {
        "metrics": metrics,
        "method": way.method,
        "run": origin.run.resolve().name,
        "alpha": share,
        "chosen": why,
        "metric": origin.metric,
        "rows": rows.origin,
        "row_count": len(rows.rows),
        "rows_unseen": rows.unseen,
        "path": [asdict(point) for point in path],
        "statistics": "measured" if way.measure_again else "interpolated",
        "statistics_measured_again": len(measured_again),
        "how": f"Weights between the source and a run fine-tuned from it ({way.method}, "
        f"α = {share:g}: {why}, on {len(rows.rows)} {rows.origin}).",
    }


def summary(record: dict[str, Any]) -> str:
    """The result as text for a terminal."""
    made, metrics = record["blend"], record["metrics"]
    metric = made["metric"]
    rows = [
        [
            f"{point['alpha']:g}{' *' if point['alpha'] == made['alpha'] else ''}",
            f"{point['target']:.4f}",
            "-" if point["retention"] is None else f"{point['retention']:.4f}",
            f"{point['loss']:.4f}",
        ]
        for point in made["path"]
    ]
    tests = [f"{name}: {metric} {found[metric]:.4f}" for name, found in metrics.items()]
    where = f"measured on {made['row_count']} {made['rows']}"
    return "\n".join(
        [
            table(["alpha", metric, "retention", "loss"], rows),
            "",
            f"* {made['method']}, {made['chosen']}; {where}.",
            *(tests or ["There is no test split."]),
        ]
    )


def _refuse_settings(
    method: str, alpha: float | None, retain: float | None, statistics: str
) -> None:
    for name, value, known in (
        ("--method", method, METHODS),
        ("--statistics", statistics, STATISTICS),
    ):
        if value not in known:
            raise UserError(f"{name}: {value!r} is not known. Choices: {', '.join(known)}.")
    if alpha is not None and retain is not None:
        raise UserError("--alpha and --retain: one of them; --retain chooses alpha.")
    for name, value in (("--alpha", alpha), ("--retain", retain)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}: {value} should be between 0 and 1.")
