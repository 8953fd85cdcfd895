"""Tables in files, csv, tsv, json, jsonl (also .gz) and parquet, as typed rows; faults by line."""

import csv
import io
import json
import logging
import mimetypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_dataset

from hf_sft.arrow_columns import array
from hf_sft.errors import DataError, listing
from hf_sft.json_text import parsed
from hf_sft.packed import read_bytes, refuse_bomb

log = logging.getLogger(__name__)

DELIMITERS = {"csv": ",", "tsv": "\t"}
OTHERS = (";", "\t", "|")
ENDINGS = (*DELIMITERS, "json", "jsonl", "parquet")
MISSING = {"", "nan", "NaN", "null", "NULL", "<NA>", "#N/A"}  # None, NA, n/a are words: classes too
TYPES = (
    (re.compile(r"-?(0|[1-9]\d{0,17})"), int),  # 007 and longer numbers stay text
    (re.compile(r"[-+]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)([eE][-+]?\d+)?"), float),
    (re.compile(r"True|true|TRUE|False|false|FALSE"), lambda word: word.lower() == "true"),
)
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

    Text formats are read whole into memory; parquet is memory-mapped and keeps its Features.

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
    text = read_text(path, where)
    if kind in DELIMITERS:
        columns = _csv_columns(text, _delimiter(text, DELIMITERS[kind], where), where)
    else:
        columns = _json_columns(text, kind == "jsonl", where)
    found = pa.table({name: array(values, name, where) for name, values in columns.items()})
    try:
        return Dataset(found)
    except ValueError as error:  # what datasets keeps of a name ends at a NUL
        raise DataError(
            f"{where}: the names of its columns ({listing(map(repr, columns))}), or of the fields "
            "in them, cannot be kept; is there a NUL in one? Name them with letters."
        ) from error


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


def _delimiter(text: str, usual: str, where: str) -> str:
    """What divides the header's names: the usual sign, or another where that divides nothing."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    counts = {sign: len(next(csv.reader([header], delimiter=sign))) for sign in (usual, *OTHERS)}
    best = max(counts, key=counts.__getitem__)  # of equals the first
    if counts[usual] > 1 or best == usual:
        return usual
    log.warning("%s: its values are divided by %r, not by %r; read so.", where, best, usual)
    return best


def _csv_columns(text: str, delimiter: str, where: str) -> dict[str, list]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # one text may be longer than 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = _csv_rows(reader, where)
    header = [name.strip() for name in next(rows, [])]
    _check_header(header, where)
    cells: list[list[str]] = []
    for row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{where} line {reader.line_num} has {len(row)} values, the header has "
                f"{len(header)} ({listing(header)}). Quote values that hold {delimiter!r}."
            )
        cells.append(row)
    values = zip(*cells, strict=True) if cells else ([] for _ in header)
    return {name: _typed(column) for name, column in zip(header, values, strict=True)}


def _csv_rows(reader: Any, where: str) -> Iterator[list[str]]:
    """The rows that are not blank."""
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise DataError(
            f"{where} line {reader.line_num} is no valid table: {error}. A quote inside a quoted "
            "value is written twice."
        ) from error


def _check_header(header: list[str], where: str) -> None:
    if not header:
        raise DataError(f"{where} holds no header line.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise DataError(
            f"{where} line 1: every column needs a name of its own, found: "
            f"{listing(map(repr, header))}."
        )


def _typed(column: Any) -> list:
    """Whole numbers, numbers, truth values or else text, whichever all values of a column are."""
    values = [None if value in MISSING else value for value in column]
    present = [value for value in values if value is not None]
    for form, convert in TYPES:
        if present and all(form.fullmatch(value) for value in present):
            return [None if value is None else convert(value) for value in values]
    return values


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
