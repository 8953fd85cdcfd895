"""csv and tsv, a part at a time: the rows of a large file go to a file of Arrow's."""

import csv
import errno
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from datasets import Dataset
from datasets.table import MemoryMappedTable

from hf_sft.arrow_columns import dataset
from hf_sft.errors import DataError, listing

log = logging.getLogger(__name__)

LARGE = 2**26  # bytes of a table that may stay in memory
AT_ONCE = 1000  # rows
OTHERS = (";", "\t", "|")
MISSING = {"", "nan", "NaN", "null", "NULL", "<NA>", "#N/A"}  # None, NA, n/a are words: classes too
TYPES = (
    (re.compile(r"-?(0|[1-9]\d{0,17})"), int, pa.int64()),  # 007 and longer numbers stay text
    (
        re.compile(r"[-+]?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)([eE][-+]?\d+)?"),
        float,
        pa.float64(),
    ),
    (re.compile(r"True|true|TRUE|False|false|FALSE"), lambda w: w.lower() == "true", pa.bool_()),
)
_folders: list[tempfile.TemporaryDirectory] = []  # gone when the process ends


def csv_table(file: TextIO, usual: str, where: str, size: int) -> Dataset:
    """All rows, each column as whole numbers, numbers, truth values or else text.

    Args:
        file: of text, opened with ``newline=""``.
        usual: what divides the values, where the header does not tell otherwise.
        where: names the file in messages.
        size: its bytes; beyond LARGE the rows are kept in a temporary file.

    Raises:
        DataError: with the line; or the temporary folder is full.
        UnicodeDecodeError: it is not UTF-8.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # one text may be longer than 128 KiB
    kinds = _Kinds()
    texts = _texts(file, usual, where, kinds)
    if size <= LARGE:
        parts = list(texts)
        return dataset(pa.Table.from_batches([kinds.typed(part) for part in parts]), where)
    folder = tempfile.TemporaryDirectory(prefix="hf_sft-", ignore_cleanup_errors=True)
    _folders.append(folder)
    try:
        return dataset(MemoryMappedTable.from_file(str(_in_file(folder.name, texts, kinds))), where)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{where}: its rows are kept in '{folder.name}' while they are used, and that is full: "
            f"about {3 * size >> 20} MB are needed. Make room, or set TMPDIR to another folder."
        ) from error


def _in_file(folder: str, texts: Iterator[pa.RecordBatch], kinds: "_Kinds") -> Path:
    """The file of Arrow's with all rows, typed."""
    raw, rows = Path(folder) / "texts.arrow", Path(folder) / "rows.arrow"
    _write(raw, texts)
    if kinds.all_text():
        return raw
    with pa.memory_map(str(raw)) as mapped:
        _write(rows, map(kinds.typed, pa.ipc.open_stream(mapped)))
    raw.unlink()
    return rows


class _Kinds:
    """What the values of each column can be read as, found out part by part."""

    def __init__(self):
        self.left: dict[str, list[tuple]] = {}
        self.filled: set[str] = set()

    def see(self, name: str, values: list[str | None]) -> None:
        """Take note of more values of a column."""
        present = [value for value in values if value is not None]
        if present:
            self.filled.add(name)
        self.left[name] = [
            kind
            for kind in self.left.get(name, TYPES)
            if all(kind[0].fullmatch(value) for value in present)
        ]

    def all_text(self) -> bool:
        return not any(self.left.values())

    def typed(self, part: pa.RecordBatch) -> pa.RecordBatch:
        """A part of all columns, once all of them have been seen."""
        columns = [self._column(*pair) for pair in zip(part.schema.names, part, strict=True)]
        return pa.record_batch(columns, names=part.schema.names)

    def _column(self, name: str, texts: pa.Array) -> pa.Array:
        if name not in self.filled:
            return pa.nulls(len(texts))
        if not self.left[name]:
            return texts
        _, convert, kind = self.left[name][0]
        return pa.array([None if t is None else convert(t) for t in texts.to_pylist()], kind)


def _texts(file: TextIO, usual: str, where: str, kinds: _Kinds) -> Iterator[pa.RecordBatch]:
    """Parts of all columns as text; at least one, of no rows where the file has none."""
    ahead = []
    for line in file:
        ahead.append(line)
        if line.strip():
            break
    delimiter = _delimiter("".join(ahead), usual, where)
    reader = csv.reader(chain(ahead, file), delimiter=delimiter, strict=True)
    rows = _rows(reader, where)
    names = [name.strip() for name in next(rows, [])]
    _check_header(names, where)
    whole, first = _whole(rows, reader, names, where), True
    while (part := list(islice(whole, AT_ONCE))) or first:
        first = False
        columns = []
        for name, column in zip(
            names, zip(*part, strict=True) if part else [()] * len(names), strict=True
        ):
            values = [None if value in MISSING else value for value in column]
            kinds.see(name, values)
            columns.append(pa.array(values, pa.string()))
        yield pa.record_batch(columns, names=names)


def _delimiter(start: str, usual: str, where: str) -> str:
    """What divides the header's names: the usual sign, or another where that divides nothing."""
    header = next((line for line in start.splitlines() if line.strip()), "")
    counts = {sign: len(next(csv.reader([header], delimiter=sign))) for sign in (usual, *OTHERS)}
    best = max(counts, key=counts.__getitem__)  # of equals the first
    if counts[usual] > 1 or best == usual:
        return usual
    log.warning("%s: its values are divided by %r, not by %r; read so.", where, best, usual)
    return best


def _rows(reader: Any, where: str) -> Iterator[list[str]]:
    """The rows that are not blank."""
    try:
        yield from (row for row in reader if row)
    except csv.Error as error:
        raise DataError(
            f"{where} line {reader.line_num} is no valid table: {error}. A quote inside a quoted "
            "value is written twice."
        ) from error


def _whole(
    rows: Iterator[list[str]], reader: Any, names: list[str], where: str
) -> Iterator[list[str]]:
    """Those rows, each with a value for every name."""
    for row in rows:
        if len(row) != len(names):
            raise DataError(
                f"{where} line {reader.line_num} has {len(row)} values, the header has "
                f"{len(names)} ({listing(names)}). Quote values that hold "
                f"{reader.dialect.delimiter!r}."
            )
        yield row


def _check_header(header: list[str], where: str) -> None:
    if not header:
        raise DataError(f"{where} holds no header line.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise DataError(
            f"{where} line 1: every column needs a name of its own, found: "
            f"{listing(map(repr, header))}."
        )


def _write(path: Path, parts: Iterator[pa.RecordBatch]) -> None:
    first = next(parts)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        for part in chain([first], parts):
            stream.write_batch(part)
