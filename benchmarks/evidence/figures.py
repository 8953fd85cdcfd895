"""The pictures of docs/evidence.md."""

import statistics
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import closed_form
from matplotlib import pyplot as plt
from summary import Row, front

INK, PALE, MARK = "#222222", "#bbbbbb", "#0072b2"
COLOURS = dict(zip(closed_form.METHODS, ("#999999", "#d55e00", "#e69f00", "#0072b2"), strict=True))
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "hf_sft",
    "svg.fonttype": "path",
}


def risks(path: Path) -> None:
    """E4: risk over N and over ‖δ‖; lines are theory, dots the mean of 2000 draws."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(8, 3.2), sharey=True, layout="constrained"
        )
        sizes, distances = np.geomspace(20, 640, 60), np.linspace(0.1, 3.2, 60)
        _curves(left, sizes, [closed_form.theory(n, 1.0) for n in sizes])
        _curves(right, distances, [closed_form.theory(20, d) for d in distances])
        dots = {n: closed_form.simulation(n, 1.0) for n in (20, 40, 80, 160, 320, 640)}
        _dots(left, dots)
        _dots(right, {d: closed_form.simulation(20, d) for d in (0.3, 1.0, 1.7, 2.4, 3.0)})
        left.set(
            xscale="log",
            yscale="log",
            xlabel="N, target examples (‖δ‖ = 1)",
            ylabel="risk E‖θ̃ − θ*‖²",
        )
        left.set_xticks([20, 80, 320], ["20", "80", "320"], minor=False)
        left.minorticks_off()
        right.axvline(closed_form.SIZE, color=PALE, linewidth=1, zorder=0)
        right.set(xlabel="‖δ‖, how far the source is off (N = 20)", ylim=(0.02, 12))
        right.annotate("‖δ‖ = ‖θ*‖", (2.03, 0.024), color="#777777")
        left.legend(frameon=False)
        _save(figure, path)


def _curves(axes, xs, found: list[dict]) -> None:
    for name in closed_form.METHODS:
        axes.plot(xs, [risk[name] for risk in found], color=COLOURS[name], label=name)


def _dots(axes, found: dict[float, dict]) -> None:
    for name in closed_form.METHODS:
        values = [risk[name] for risk in found.values()]
        axes.plot(list(found), values, "o", markersize=3.5, color=COLOURS[name])


def pareto(rows: list[Row], labels: tuple[str, str], path: Path) -> None:
    """Every arm's mean: what is left of the source (x), accuracy (y); bars: standard errors."""
    kept = [row for row in rows if row.retention and row.accuracy]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        points = [(_mean(row.retention), _mean(row.accuracy)) for row in kept]
        best = front(points)
        axes.plot(*zip(*best, strict=True), color=PALE, linewidth=1.2, zorder=0)
        path_of = [i for i, row in enumerate(kept) if ", λ " in row.arm]
        _path(axes, [points[i] for i in path_of])
        for i, (row, (x, y)) in enumerate(zip(kept, points, strict=True)):
            if i in path_of:
                continue
            on_front = (x, y) in best
            axes.errorbar(
                x,
                y,
                _error(row.accuracy),
                _error(row.retention),
                fmt="o",
                color=MARK if on_front else "#777777",
                elinewidth=0.7,
                markersize=5 if on_front else 4,
            )
        named = [i for i in range(len(kept)) if i not in path_of]
        _name(axes, [kept[i].arm for i in named], [points[i] for i in named])
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.margins(0.12)
        _save(figure, path)


def _path(axes, points: list[tuple[float, float]]) -> None:
    """One method over its strengths: a line instead of numbers."""
    if points:
        label = "L2-SP at one learning rate, λ rising"
        axes.plot(*zip(*points, strict=True), ".-", color="#d55e00", linewidth=1, label=label)
        axes.legend(frameon=False, loc="lower left")


def _name(axes, names: list[str], points: list[tuple[float, float]]) -> None:
    """Numbers beside the points (one label where they coincide), names in a list at the right."""
    order = sorted(range(len(names)), key=lambda i: -points[i][1])
    together: dict[tuple[float, float], list[int]] = {}
    for number, i in enumerate(order, 1):
        together.setdefault(points[i], []).append(number)
    for point, numbers in together.items():
        text = ", ".join(map(str, numbers))
        axes.annotate(text, point, (4, 4), textcoords="offset points", fontsize=8)
    lines = [f"{number:\u2007>2}  {names[i]}" for number, i in enumerate(order, 1)]
    axes.text(1.02, 1.0, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8)


def _mean(values: dict[int, float]) -> float:
    return 100 * statistics.mean(values.values())


def _error(values: dict[int, float]) -> float:
    if len(values) < 2:
        return 0.0
    return 100 * statistics.stdev(values.values()) / len(values) ** 0.5


def _save(figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    plt.close(figure)
