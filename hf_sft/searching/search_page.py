"""search.html: trials, importances and slices of a search in one file."""

from pathlib import Path
from textwrap import fill
from typing import Any

import jinja2
from matplotlib.axes import Axes

from hf_sft.recipe_text import dump
from hf_sft.reporting.charts import INK, LINES, drawing
from hf_sft.searching.search_table import legend, number, ordered, shown

WIDTH = 18  # letters of a line below an axis


def render(data: dict[str, Any]) -> str:
    """The page; it needs no other file, and names no path of this machine."""
    templates = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    page = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.undefined = jinja2.StrictUndefined
    page.filters.update(number=number, yaml=lambda value: dump(value).rstrip())
    return page.get_template("search.html.j2").render(
        data=data,
        rows=ordered(data),
        shown=shown,
        legend=legend(data),
        weights=weights(data["importances"]),
        slices=[slice_of(data, key, i) for i, key in enumerate(data["over"])],
        failed=[row for row in data["trials"] if row["problem"]],
        recipe=data.get("recipe"),
    )


def weights(found: dict[str, float]) -> str:
    """A bar for every key; nothing where nothing is known."""
    if not found:
        return ""

    def draw(axes: Axes) -> None:
        axes.barh(list(found)[::-1], list(found.values())[::-1], color=LINES[0])
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the target's variance")

    return drawing("Importance", (4.8, 0.7 + 0.4 * len(found)), draw)


def slice_of(data: dict[str, Any], key: str, place: int) -> str:
    """The target of every finished trial over one key."""
    done = [row for row in data["trials"] if row["target"] is not None]
    if not done:
        return ""
    values = data["over"][key]

    def draw(axes: Axes) -> None:
        at = [row["params"][key] for row in done]
        if isinstance(values, list):
            names = list(dict.fromkeys(at))
            axes.set_xticks(range(len(names)), [fill(shown(name, key), WIDTH) for name in names])
            at = [names.index(value) for value in at]
            axes.margins(0.2)
        elif values["log"]:
            axes.set_xscale("log")
        for row, value in zip(done, at, strict=True):
            chosen = row["number"] == data["best"]
            ring = {"mec": INK, "ms": 9} if chosen else {"ms": 5}
            axes.plot(value, row["target"], "o", color=LINES[0], **ring)
        axes.set_xlabel(key)
        axes.set_ylabel(data["metric"].replace("_", " "))

    return drawing(f"Slice {place + 1}", (4.4, 2.9), draw)
