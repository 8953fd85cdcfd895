"""A report without the rows of the data that it shows: what may be read by others."""

from typing import Any

from hf_sft.reporting.report import Report

COUNTED = {
    "average_precision",
    "classes",
    "confusion_matrix",
    "endings",
    "generation",
    "languages",
    "most_confused",
    "no_answer_threshold",
    "per_class",
    "questions",
    "signature",
    "worst_images",  # numbers of rows and scores
}  # tables of labels and numbers; any other, also one of a task of yours, may show rows


def without_rows(report: Report) -> Report:
    """A copy that keeps of ``tables`` those over all rows, and of ``pictures`` the charts."""
    data = report.data
    tables = {split: _counted(found) for split, found in data.get("tables", {}).items()}
    pictures = {split: _charts(found) for split, found in data.get("pictures", {}).items()}
    return Report({**data, "tables": tables, "pictures": pictures})


def _counted(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: rows for name, rows in tables.items() if name in COUNTED}


def _charts(pictures: dict[str, list[dict]]) -> dict[str, list[dict]]:
    charts = {name: [x for x in shown if "lines" in x] for name, shown in pictures.items()}
    return {name: shown for name, shown in charts.items() if shown}
