"""Tables in files, csv, tsv, json, jsonl (also .gz) and parquet, as typed rows; faults by line."""

import io
import json
import logging
import mimetypes
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_dataset

from hf_sft.arrow_columns import array, dataset
from hf_sft.csv_files import csv_table
from hf_sft.errors import DataError, listing
from hf_sft.json_text import parsed
from hf_sft.packed import read_bytes, refuse_bomb

log = logging.getLogger(__name__)

DELIMITERS = {"csv": ",", "tsv": "\t"}
ENDINGS = (*DELIMITERS, "json", "jsonl", "parquet")
MEDIA = ("image/", "audio/", "video/")
FEW = 100  # values of a column by which it is seen to hold the names of files
FORMS = "a list of objects, an object of equally long lists, or one object per line"


def ending(path: Path) -> str:
    """The format that the name tells, ``.gz`` left out; ``X.CSV`` is csv."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def is_table(path: Path) -> bool:
    """Whether the name says so."""
    return ending(path) in ENDINGS and path.is_file()


def beside(rows: Dataset, folder: Path) -> Dataset:
    """Names of pictures or sounds that lie where their table does, as paths that lead there.

    A column of texts is one of names if most of the first FEW end so, and one is a file in
    ``folder``, the table's own, or below it.
    """
    for name, kind in rows.features.items():
        if getattr(kind, "dtype", None) == "string" and _names_files(rows[name][:FEW], folder):
            paths = [value and str(folder / value) for value in rows[name]]
            order = rows.column_names
            rows = rows.remove_columns(name).add_column(name, paths).select_columns(order)
    return rows


def _names_files(values: list[str | None], folder: Path) -> bool:
    named = [value for value in values if value]
    media = [(mimetypes.guess_type(v, False)[0] or "").startswith(MEDIA) for v in named]
    return 2 * sum(media) > len(named) and any(os.path.isfile(folder / value) for value in named)


def read_table(path: Path, place: str) -> Dataset:
    """All rows of a file, each column of one type.

    csv and tsv are read a part at a time, json and what is packed whole; parquet is memory-mapped
    and keeps its Features. Large csv becomes a file that is memory-mapped.

    Args:
        path: the file; its ending tells the format.
        place: what names the file in messages, a recipe key or nothing.

    Raises:
        DataError: with file, line and column.
    """
    where = f"{place}: '{path.name}'" if place else f"'{path.name}'"
    kind = ending(path)
    if kind not in ENDINGS or not path.is_file():
        raise DataError(
            f"{where} is no table. Choices by ending: {listing(ENDINGS)} (also with .gz)."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{where} is an empty file.")
    if kind == "parquet":
        return _parquet(path, where)
    if kind in DELIMITERS:
        return _csv(path, DELIMITERS[kind], where)
    columns = _json_columns(read_text(path, where), kind == "jsonl", where)
    found = {name: array(values, name, where) for name, values in columns.items()}
    return dataset(pa.table(found), where)


def _csv(path: Path, delimiter: str, where: str) -> Dataset:
    if path.name.lower().endswith(".gz"):
        text = read_text(path, where)
        return csv_table(io.StringIO(text, newline=""), delimiter, where, len(text))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return csv_table(file, delimiter, where, path.stat().st_size)
    except (OSError, UnicodeDecodeError):
        read_text(path, where)  # tells which line it is, or why the file cannot be read
        raise


def _parquet(path: Path, where: str) -> Dataset:
    try:
        refuse_bomb(path)
        return load_dataset("parquet", data_files=str(path), split="train")
    except Exception as error:  # datasets and pyarrow raise whatever a broken file leads them into
        raise DataError(f"{where} cannot be read as parquet: {error.__cause__ or error}") from error


def read_text(path: Path, where: str) -> str:
    """The whole of a UTF-8 file, unpacked where its name ends in .gz.

    Raises:
        DataError: it cannot be read, or is not UTF-8; with the line.
    """
    try:
        raw = read_bytes(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read: {error}.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} line {line} is not UTF-8. Save the file as UTF-8.") from error


def _json_columns(text: str, lines: bool, where: str) -> dict[str, list]:
    whole = None
    try:
        found = None if lines else parsed(text)
    except ValueError as error:
        found, whole = None, error
    if isinstance(found, dict) and found and all(isinstance(v, list) for v in found.values()):
        if len({len(values) for values in found.values()}) > 1:
            sizes = listing(f"{name} {len(values)}" for name, values in found.items())
            raise DataError(f"{where}: its lists have different lengths ({sizes}).")
        return found
    found = [found] if isinstance(found, dict) else found
    rows = list(enumerate(found, 1)) if isinstance(found, list) else _json_lines(text, where, whole)
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} row {number} is {str(row)[:40]!r}; wanted: {FORMS}.")
    if not rows:
        raise DataError(f"{where} holds no rows.")
    names = dict.fromkeys(name for _, row in rows for name in row)
    return {name: [row.get(name) for _, row in rows] for name in names}


def _json_lines(text: str, where: str, whole: Any = None) -> list[tuple[int, Any]]:
    """Number and object of every line; ``whole``: why the text is no single json.

    Raises:
        DataError: a line is none, with its number; of a text whose first line is none, the line at
            which the whole of it breaks off.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                rows.append((number, parsed(line)))
        except ValueError as error:
            told = error if rows or not isinstance(whole, json.JSONDecodeError) else whole
            place = number if told is error else whole.lineno
            said = str(told).partition(": line ")[0]  # its own line is counted from this text's
            raise DataError(f"{where} line {place}: {said}. Wanted: {FORMS}.") from error
    return rows
