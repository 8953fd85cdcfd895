"""Finished runs beside each other: what their recipes differ in, and what they came to."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_sft.reporting.report import Report, origin
from hf_sft.reporting.report_page import number, setting
from hf_sft.table import table

OWN = ("training.output_dir", "training.resume_from_checkpoint", "compare")  # of no meaning here
WIDEST = 48  # letters of a setting
Row = tuple[str, list[str]]


def side_by_side(runs: Sequence[Path], reports: Sequence[Report]) -> str:
    """One table, a column for every run; of the recipes only what they differ in."""
    data = [report.data for report in reports]
    sections = {
        "recipe": _differences([found["recipe"] for found in data]),
        "metrics": _metrics(data),
        "kept of the source": _kept(data),
        "‖θ−θ⁰‖ of ‖θ⁰‖": _moved(data),
        "cost": _cost(data),
    }
    lines = [
        line
        for title, rows in sections.items()
        if rows
        for line in [(title, [""] * len(data)), *((f"  {name}", cells) for name, cells in rows)]
    ]
    return table(["", *_names(runs)], [[name, *cells] for name, cells in lines])


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders without what they share at the start."""
    parts = [run.resolve().parts for run in runs]
    shared = 0
    while len({p[shared] for p in parts if len(p) > shared + 1}) == 1 and all(
        len(p) > shared + 1 for p in parts
    ):
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def _differences(recipes: Sequence[dict[str, Any]]) -> list[Row]:
    flat = [dict(_leaves(recipe, "")) for recipe in recipes]
    keys = list(dict.fromkeys(key for found in flat for key in found))
    rows = [(key, [_short(found.get(key)) for found in flat]) for key in keys]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key; a list is one setting."""
    if key in OWN or value is None:
        return
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for inner, held in value.items():
        yield from _leaves(held, f"{key}.{inner}" if key else str(inner))


def _short(value: Any) -> str:
    text = "–" if value is None else setting(value)
    return text if len(text) <= WIDEST else f"…{text[1 - WIDEST :]}"


def _metrics(data: Sequence[dict[str, Any]]) -> list[Row]:
    """By split; not the loss of training, which has regularisation of each method in it."""
    keys = {
        (split, key): None
        for found in data
        for split, values in found["metrics"].items()
        if split != "train"
        for key in values
    }
    return [
        (f"{split} {key}", [number(found["metrics"].get(split, {}).get(key)) for found in data])
        for split, key in keys
    ]


def _kept(data: Sequence[dict[str, Any]]) -> list[Row]:
    kept = [found["retention"] for found in data]
    keys = {k: None for found in kept for k, value in found.items() if isinstance(value, float)}
    return [(key, [number(found.get(key)) for found in kept]) for key in keys]


def _moved(data: Sequence[dict[str, Any]]) -> list[Row]:
    """Relative drift of every layer group, by its name."""
    by_name = [{group["name"]: group for group in found["groups"]} for found in data]
    names = {name: None for found in by_name for name in found}
    return [(name, [_drift(found.get(name)) for found in by_name]) for name in names]


def _drift(group: dict[str, Any] | None) -> str:
    if group is None:
        return "–"
    drift = group["relative_drift"]
    return origin(group) if drift is None else f"{100 * drift:.3f} %"


def _cost(data: Sequence[dict[str, Any]]) -> list[Row]:
    trained = [sum(group["trainable"] for group in found["groups"]) for found in data]
    timing = [found["timing"] for found in data]
    return [
        ("parameters trained", [f"{count:,}" for count in trained]),
        ("steps", [f"{found['steps']:,}" for found in timing]),
        ("training, seconds", [f"{found['train_seconds']:.1f}" for found in timing]),
        ("peak memory, MiB", [f"{found['peak_memory_bytes'] / 2**20:,.0f}" for found in data]),
    ]
