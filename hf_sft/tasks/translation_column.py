"""The column ``translation`` of many data sets: {language: text} in every row."""

import ast
import json
from typing import Any

from datasets import Dataset

from hf_sft.errors import DataError

NESTED = "translation"
DOT = f"{NESTED}."


def unfolded(rows: Dataset, place: str) -> Dataset:
    """The rows with a column for each language, ``translation.en``; without such a column as is.

    A csv holds the dict as text, as JSON or Python writes it; a column of plain texts stays one.

    Raises:
        DataError: a row's text is no such dict, though the first row's is.
    """
    feature = rows.features.get(NESTED)
    if isinstance(feature, dict) or hasattr(feature, "languages"):
        return rows.flatten()
    if getattr(feature, "dtype", "") not in ("string", "large_string") or not len(rows):
        return rows
    first = _read(rows[0][NESTED])
    return rows if first is None else _in_columns(rows, list(first), place)


def languages(rows: Dataset) -> list[str]:
    """Those that have a column."""
    return [name.removeprefix(DOT) for name in rows.column_names if name.startswith(DOT)]


def _in_columns(rows: Dataset, codes: list[str], place: str) -> Dataset:
    found: dict[str, list[str | None]] = {code: [] for code in codes}
    for number, text in enumerate(rows[NESTED], 1):
        if (texts := _read(text)) is None:
            raise DataError(
                f"{place} row {number}: {NESTED!r} is {text!r}, no {{language: text}} as in the "
                "first row. Correct or remove the row."
            )
        for code, values in found.items():
            values.append(texts.get(code))
    for code, values in found.items():
        rows = rows.add_column(f"{DOT}{code}", values)
    return rows.remove_columns(NESTED)  # last: rows without any column are no rows


def _read(text: Any) -> dict[str, str] | None:
    """``{'en': 'red', 'de': 'rot'}`` as a dict; None for any other text."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        return None
    for reader in (json.loads, ast.literal_eval):
        try:
            found = reader(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        texts = isinstance(found, dict) and all(isinstance(v, str) for v in found.values())
        return found if texts and found else None
    return None
