"""A comparison as text for a terminal."""

from typing import Any

from hf_sft.table import table

HEADER = ["arm", "target", "difference", "retention", "difference", "seconds", "runs"]


def text(data: dict[str, Any]) -> str:
    """One table for every data size: means ± standard deviations, differences with intervals."""
    parts = []
    for size in (data["sizes"] or {"values": [None]})["values"]:
        rows = [cells(row, data["baseline"]) for row in data["summary"] if row["size"] == size]
        title = "" if size is None else f"{data['sizes']['key']} = {size}\n"
        parts.append(title + table(_header(data), rows))
    return "\n\n".join([*parts, legend(data)])


def cells(row: dict[str, Any], baseline: str) -> list[str]:
    """One arm, its numbers as they stand in the table."""
    count = 0 if row["seconds"] is None else row["seconds"]["count"]
    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    return [
        row["arm"] + (" *" if row["front"] else ""),
        spread(row["target"]),
        "baseline" if row["arm"] == baseline else interval(row["target_difference"]),
        spread(row["retention"]),
        "baseline" if row["arm"] == baseline else interval(row["retention_difference"]),
        "–" if row["seconds"] is None else f"{row['seconds']['mean']:.0f}",
        f"{count}{failed}",
    ]


def spread(found: dict[str, Any] | None) -> str:
    """Mean ± standard deviation over seeds."""
    if found is None:
        return "–"
    deviation = "" if found["deviation"] is None else f" ± {number(found['deviation'])}"
    return f"{number(found['mean'])}{deviation}"


def interval(found: dict[str, Any] | None) -> str:
    """Mean difference of the pairs, and its interval."""
    if found is None:
        return "–"
    low, high = found["low"], found["high"]
    ends = "" if low is None else f" [{number(low, '+')}, {number(high, '+')}]"
    return f"{number(found['mean'], '+')}{ends}"


def number(value: float, sign: str = "") -> str:
    """Three decimals; four digits of what is large."""
    rounded = round(value, 3) + 0.0  # no -0.000
    return f"{rounded:{sign}.3f}" if abs(value) < 100 else f"{value:{sign}.4g}"


def legend(data: dict[str, Any]) -> str:
    """How the columns are to be read."""
    seeds, by = len(data["seeds"]), data["retention_by"]
    kept = (
        f"retention: {by.replace('_', ' ')}, 1 is the source's function" if by else "retention: –"
    )
    return (
        f"target: {data['metric'].replace('_', ' ')} on {data['split'] or 'no split'}; {kept}. "
        f"Mean ± standard deviation over {seeds} seeds;\ndifference to {data['baseline']}, paired "
        f"by seed, [{100 * data['confidence']:.0f} % t interval, each arm by itself]. "
        "* no other arm beats it in one of them without losing in the other."
    )


def _header(data: dict[str, Any]) -> list[str]:
    return ["arm", data["metric"].replace("_", " "), *HEADER[2:]]
