"""Drawings of compare.html: target against retention, and target against the size of the data."""

from typing import Any

from matplotlib.axes import Axes

from hf_sft.reporting.charts import LINES, drawing

MARKS, STROKES = "osD", ("-", "--", ":")  # one for every round of colours
PARETO = "Target against retention; bars are standard deviations over seeds"
CURVE = "Target against the size of the training data; bars are standard deviations over seeds"
Row = dict[str, Any]


def pareto(data: dict[str, Any], rows: list[Row]) -> str:
    """Arms of one size as points; one whose retention is not defined as a line. Nothing for none.

    Up and to the right is better, or down, where less of the metric is.
    """
    looks = _looks(data)
    rows = [row for row in rows if row["target"]]
    points = [row for row in rows if row["retention"]]
    if not points:
        return ""

    def draw(axes: Axes) -> None:
        for row in points:
            axes.errorbar(
                row["retention"]["mean"],
                row["target"]["mean"],
                xerr=row["retention"]["deviation"],
                yerr=row["target"]["deviation"],
                label=row["arm"],
                ms=6,
                elinewidth=0.9,
                **looks[row["arm"]],
            )
        _lines(axes, [row for row in rows if not row["retention"]], looks)
        axes.margins(0.12)
        axes.set_xlabel(f"retention ({data['retention_by'].replace('_', ' ')})")
        axes.set_ylabel(data["metric"].replace("_", " "))

    return drawing(PARETO, (4.8, 4.2), draw)


def _lines(axes: Axes, rows: list[Row], looks: dict[str, dict[str, str]]) -> None:
    """What has no retention; far from the points only in the legend, lest they become one heap."""
    low, high = axes.dataLim.intervaly
    for row in rows:
        mean = row["target"]["mean"]
        style = {"color": looks[row["arm"]]["color"], "ls": "--", "lw": 1.2}
        if low == high or 2 * low - high <= mean <= 2 * high - low:
            axes.axhline(mean, label=row["arm"], **style)
        else:
            axes.plot([], [], label=f"{row['arm']}: at {mean:.3g}", **style)


def sizes(data: dict[str, Any]) -> str:
    """A curve for every arm over the data sizes; nothing where they are fewer than two."""
    if len((data["sizes"] or {"values": []})["values"]) < 2:
        return ""
    looks = _looks(data)

    def draw(axes: Axes) -> None:
        for number, arm in enumerate(data["arms"]):
            rows = [row for row in data["summary"] if row["arm"] == arm and row["target"]]
            axes.errorbar(
                [row["size"] for row in rows],
                [row["target"]["mean"] for row in rows],
                yerr=[row["target"]["deviation"] or 0.0 for row in rows],
                label=arm,
                ms=4.5,
                lw=1.6,
                ls=STROKES[number // len(LINES) % len(STROKES)],
                elinewidth=0.9,
                **looks[arm],
            )
        values = data["sizes"]["values"]
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel(data["sizes"]["key"])
        axes.set_ylabel(data["metric"].replace("_", " "))

    return drawing(CURVE, (4.8, 4.2), draw)


def _looks(data: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Colour and mark of every arm, the same in all drawings."""
    return {
        arm: {"color": LINES[i % len(LINES)], "marker": MARKS[i // len(LINES) % len(MARKS)]}
        for i, arm in enumerate(data["arms"])
    }
