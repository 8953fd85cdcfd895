"""Drawings of report.html: svg that takes the page's size and its light or dark colours."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

INK, RULE = "#010101", "#020202"  # stand for the page's own colours, see _on_page
LINES = [f"#0{i}0{i}0f" for i in range(1, 7)]
MOST_NAMED, LONGEST = 16, 6  # layers, and letters of each, that fit below an axis
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": matplotlib.cycler(color=LINES),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,
}
PARTS = "Loss, penalty and their sum, the objective"
HELD_OUT = "On held-out rows while training"
RATE = "Learning rate"
STRENGTH = "Strength λ of the pull"
PULL = "Size of the pull / of the task gradient"
TURN = "cos(task gradient, θ − θ⁰)"
ALIKE = "Source and tuned model, layer by layer; the band holds the middle half of the features"


def history(logged: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(caption, svg) of what was logged over the steps; what never was is left out."""
    scores = {
        key.removeprefix("eval_"): key
        for entry in logged
        for key in entry
        if key.startswith("eval_")
        and not key.endswith(("_loss", "_runtime", "_per_second", "_preparation_time"))
    }
    wanted = {
        PARTS: {
            **{key: key for key in ("objective", "loss", "penalty")},
            "loss on held-out rows": "eval_loss",
        },
        HELD_OUT: scores,
        PULL: {"pull / gradient": "pull_to_gradient"},
        TURN: {"cosine": "gradient_drift_cosine"},
        RATE: {"learning rate": "learning_rate"},
        STRENGTH: {"λ": "lambda"},
    }
    drawn = [(caption, _over_steps(caption, logged, keys)) for caption, keys in wanted.items()]
    return [(caption, svg) for caption, svg in drawn if svg]


def _over_steps(caption: str, logged: list[dict[str, Any]], keys: dict[str, str]) -> str:
    lines = {
        label.replace("_", " "): [(e["step"], e[key]) for e in logged if finite(e.get(key))]
        for label, key in keys.items()
    }
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        return ""

    def draw(axes: Axes) -> None:
        for label, points in lines.items():
            mark = "o" if len(points) < 12 else ""
            axes.plot(*zip(*points, strict=True), label=label, lw=1.6, marker=mark, ms=3.5)
        axes.set_xlabel("step")
        if max(map(len, lines.values())) == 1:  # of one point, matplotlib shows step 9.5 to 10.5
            axes.set_xlim(0, 1.5 * max(step for points in lines.values() for step, _ in points) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if caption == TURN:
            axes.axhline(0, color=INK, lw=0.8)

    return drawing(caption, (4.4, 2.7), draw)


def layers(found: list[dict[str, Any]]) -> str:
    """CKA and R² of every layer group, in the order of the model; nothing for fewer than two."""
    if len(found) < 2:
        return ""
    at = range(len(found))

    def draw(axes: Axes) -> None:
        quartiles = [layer["r2_quartiles"] for layer in found]
        low, middle, high = zip(*quartiles, strict=True)
        axes.fill_between(at, low, high, color=LINES[1], alpha=0.18, lw=0)
        axes.plot(at, [x["cka"] for x in found], label="linear CKA", lw=1.6, marker="o", ms=3.5)
        axes.plot(at, middle, label="R² of a feature, median", lw=1.6, marker="o", ms=3.5)
        axes.set_ylim(min(0.0, *low), 1.03)
        step = math.ceil(len(found) / MOST_NAMED)
        names = named([layer["name"] for layer in found])[::step]
        axes.set_xticks(at[::step], names)
        if max(map(len, names)) > LONGEST:
            axes.tick_params(axis="x", rotation=30)

    return drawing(ALIKE, (5.2, 2.7), draw)


def curves(chart: dict[str, Any]) -> str:
    """A chart of `Task.pictures`: ``lines`` name -> points in 0..1, axes ``x`` and ``y``."""

    def draw(axes: Axes) -> None:
        for name, points in chart["lines"].items():
            axes.plot(*zip(*points, strict=True), label=name, lw=1.6)
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel=chart["x"], ylabel=chart["y"])

    return drawing(chart["caption"], (4.4, 3.0), draw)


def named(layers: list[str]) -> list[str]:
    """Short names; where an encoder and a decoder count alike, with the stack's first letters."""
    names = [short(name) for name in layers]
    stacks = [re.search(r"(enc|dec)oder", name) for name in layers]
    if len(set(names)) == len(names):
        return names
    return [f"{s[1]} {n}" if s else n for s, n in zip(stacks, names, strict=True)]


def _name_numbers(axis: Axis) -> None:
    """On a logarithmic axis, whose own labels are formulae; 2 and 5 too where few decades are."""

    def plain(value: float, _: int) -> str:
        return f"{value:g}"

    low, high = axis.get_view_interval()
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(plain if high < 100 * low else "")
    if high < 100 * low and not isinstance(axis.get_minor_locator(), NullLocator):
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))


def short(name: str) -> str:
    """``block 3`` and ``bert.encoder.layer.3`` as 3; another name by its end."""
    number = re.search(r"(?:^|[ .])(\d+)$", name)
    return number[1] if number else name.rpartition(".")[2][-16:]


def finite(value: Any) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def drawing(caption: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """One picture in inches, with a legend of what ``draw`` has labelled."""
    # A Figure of its own, not pyplot: nothing stays behind in the process that trains.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": caption}):
        figure = Figure(size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                _name_numbers(axis)
        one = caption in (PULL, TURN, RATE, STRENGTH)  # one line, which the caption names
        if axes.get_legend_handles_labels()[0] and not one:
            figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=1.2)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _on_page(file.getvalue(), caption)


def _on_page(svg: str, caption: str) -> str:
    """The drawing as a part of the page, which gives it its size and its light or dark colours."""
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index("</metadata>") + len("</metadata>") :]
    # The same names would recur in every drawing; those that are referred to are hashed.
    inner = re.sub(r'<g id="[^"]*">', "<g>", inner)
    for i, colour in enumerate(LINES, start=1):
        inner = inner.replace(colour, f"var(--line{i})")
    inner = inner.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    return f'<svg {box} role="img" aria-label="{caption}">{inner}'
