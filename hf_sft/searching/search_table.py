"""A search as text for a terminal."""

from typing import Any

from hf_sft.searching.best import rank
from hf_sft.table import table


def text(data: dict[str, Any]) -> str:
    """One row a trial, the best first; then failed ones with their reason."""
    keys = list(data["over"])
    header = ["trial", *keys, data["metric"], "retention", "state"]
    rows = [
        [
            f"{row['number']}" + (" *" if row["number"] == data["best"] else ""),
            *(shown(row["params"].get(key), key) for key in keys),
            number(row["target"]),
            number(row["retention"]),
            row["state"],
        ]
        for row in ordered(data)
    ]
    return "\n".join([table(header, rows), legend(data), *_failures(data)])


def ordered(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials, the best first: by target, then retention; those without a target last."""
    return sorted(data["trials"], key=lambda row: rank(row, data["greater_is_better"]))


def shown(value: Any, key: str) -> str:
    """A setting; an override as its value alone."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "–" if value is None else str(value).removeprefix(f"{key}=")


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def legend(data: dict[str, Any]) -> str:
    """How the table is to be read."""
    least = data["retention_at_least"]
    among = "" if least is None else f" with a retention of at least {least:g}"
    if data["best"] is None:
        return f"No trial has finished{among}: no best.yaml."
    return f"* the best {data['metric']} of validation{among}. Retention is of validation rows too."


def _failures(data: dict[str, Any]) -> list[str]:
    failed = [row for row in data["trials"] if row["problem"]]
    return [f"trial {row['number']} failed: {row['problem']}" for row in failed]
