"""compare.html: tables, pictures and failures of a comparison in one file."""

from pathlib import Path
from typing import Any

import jinja2

from hf_sft.comparing import compare_charts, compare_table
from hf_sft.recipe_text import dump
from hf_sft.reporting.report_page import number


def render(data: dict[str, Any]) -> str:
    """The page; it needs no other file, and names no path of this machine."""
    templates = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    page = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page.undefined = jinja2.StrictUndefined
    page.filters.update(
        number=number,
        spread=compare_table.spread,
        interval=compare_table.interval,
        words=lambda key: str(key).replace("_", " "),
        yaml=lambda value: dump(value).rstrip(),
    )
    values = (data["sizes"] or {"values": [None]})["values"]
    by_size = [(v, [row for row in data["summary"] if row["size"] == v]) for v in values]
    return page.get_template("compare.html.j2").render(
        data=data,
        by_size=[(v, rows, compare_charts.pareto(data, rows)) for v, rows in by_size],
        curve=compare_charts.sizes(data),
        legend=compare_table.legend(data),
        finished=sum(run["state"] == "finished" for run in data["runs"]),
        failed=[run for run in data["runs"] if run["state"] == "failed"],
        seconds=sum(run["seconds"] or 0 for run in data["runs"]),
    )
