"""blend.html: the way from the source to the run, as a picture and a table in one file."""

import io
import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from hf_sft.reporting import report_page

INK, RULE, WAY, MARK = "#010101", "#020202", "#01010f", "#02020f"  # stand for the page's colours
ON_PAGE = {INK: "currentColor", RULE: "var(--rule)", WAY: "var(--way)", MARK: "var(--mark)"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "blend",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
}


def render(record: dict[str, Any]) -> str:
    """The page; it needs no other file, and names no path of this machine."""
    made = record["blend"]
    folder = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    page = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.undefined = jinja2.StrictUndefined
    page.filters.update(number=report_page.number, words=lambda key: str(key).replace("_", " "))
    return page.get_template("blend.html.j2").render(
        made=made,
        metrics=record["metrics"],
        source=report_page.shareable(record["source"]),
        picture=_on_page(_svg(made)),
    )


def draw(made: dict[str, Any]) -> Figure:
    """Target against retention along α; against α itself where retention is unknown."""
    path = made["path"]
    known = all(point["retention"] is not None for point in path)
    key = "retention" if known else "alpha"
    with matplotlib.rc_context(STYLE):
        # A Figure of its own, not pyplot: nothing stays behind in the process.
        figure = Figure((6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        x, y = [point[key] for point in path], [point["target"] for point in path]
        axes.plot(x, y, color=WAY, lw=1.6, marker="o", ms=4.5)
        for point in path:
            chosen = point["alpha"] == made["alpha"]
            if chosen:
                axes.plot(point[key], point["target"], "o", ms=13, mfc="none", mec=MARK, mew=2.2)
            if said := _said(point["alpha"], chosen, made["method"]):
                left = point[key] <= (min(x) + max(x)) / 2
                _write(axes, said, (point[key], point["target"]), left, chosen)
        axes.margins(0.12)
        axes.set_xlabel("retention: 1 is the source's own function" if known else "α")
        axes.set_ylabel(made["metric"].replace("_", " "))
    return figure


def _said(alpha: float, chosen: bool, method: str) -> str:
    """What stands at a point: the ends and the choice are named."""
    ends = {1.0: "run"} if method == "lines" else {0.0: "source", 1.0: "run"}
    words = [ends.get(alpha, ""), "chosen" if chosen else ""]
    named = any(words) or alpha in (0.0, 1.0)
    return ", ".join([f"α = {alpha:g}", *filter(None, words)]) if named else ""


def _write(axes: Any, said: str, at: tuple[float, float], left: bool, chosen: bool) -> None:
    """Above a point in the left half and below one in the right: the way mostly falls."""
    axes.annotate(
        said,
        at,
        (9, 7) if left else (-7, -9),
        textcoords="offset points",
        ha="left" if left else "right",
        va="bottom" if left else "top",
        color=MARK if chosen else INK,
        weight="bold" if chosen else "normal",
    )


def _svg(made: dict[str, Any]) -> str:
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        draw(made).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _on_page(svg: str) -> str:
    """The drawing as a part of the page, in its light or dark colours."""
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index("</metadata>") + len("</metadata>") :]
    for colour, own in ON_PAGE.items():
        inner = inner.replace(colour, own)
    return f'<svg {box} role="img" aria-label="Target against retention">{inner}'
