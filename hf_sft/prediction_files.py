"""Predictions as files: csv, jsonl, or a folder; each takes its name when it is whole."""

import csv
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from hf_sft.errors import DataError

log = logging.getLogger(__name__)

FORMULA = re.compile(r"[=@\t\r]|\+(?![\d\s])|-(?![\d\s.]|$)")  # no number, no dash of a list


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file that takes its name when it is whole; nothing is left, or replaced, when it is not.

    Raises:
        DataError: nothing can be written there.
    """
    target = Path(os.path.realpath(path))  # a link stays a link, as in plain writing
    partial = target.with_name(target.name + ".partial")
    if os.path.isdir(target) or (os.path.exists(target) and not os.access(target, os.W_OK)):
        raise DataError(f"--output: '{path}' is a folder, or protected. Name another file.")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(partial, target)
    except BaseException as error:  # Ctrl-C as well
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise DataError(
                f"--output: '{path}' cannot be written: {error}. Name a file in a folder that "
                "exists and can be written to."
            ) from error
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder that takes its name when everything in it is written; else nothing is left.

    Raises:
        DataError: there is something there already, or no folder can be made there.
    """
    target = Path(os.path.realpath(path))
    partial = target.with_name(target.name + ".partial")
    if os.path.exists(target) and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"--output: '{path}' is not empty. Name another folder, or remove it.")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir()
        yield partial
        os.replace(partial, target)
    except BaseException as error:  # Ctrl-C as well
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise DataError(
                f"--output: '{path}' cannot be written: {error}. Name a folder inside one that "
                "exists and can be written to."
            ) from error
        raise


def write_csv(file: TextIO, first: dict, records: Iterator[dict]) -> None:
    """One line per record, in the columns of the first; every value as it is.

    How many a spreadsheet would take for formulas is told: they are not changed, as programs that
    read the file want the texts that were given.
    """
    flat, formulas = _flat(first), 0
    writer = csv.DictWriter(file, flat)
    writer.writeheader()
    for cells in itertools.chain([flat], map(_flat, records)):
        writer.writerow(cells)
        formulas += sum(map(_is_formula, cells.values()))
    if formulas:
        log.warning(
            "%d cells begin as formulas do (=, +, -, @): in a spreadsheet program, import the csv "
            "with all columns as text, or write .jsonl.", formulas
        )  # fmt: skip


def _is_formula(cell: Any) -> bool:
    """Whether a spreadsheet program would calculate it (OWASP, "CSV injection")."""
    return isinstance(cell, str) and FORMULA.match(cell) is not None


def write_jsonl(file: TextIO, first: dict, records: Iterator[dict]) -> None:
    """One json object per record."""
    for record in itertools.chain([first], records):
        file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _flat(record: dict) -> dict:
    """A record as cells: the probabilities one by one, what else is nested as json."""
    inner = record.pop("probabilities", {})
    cells = {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
        for key, value in record.items()
    }
    return {**cells, **{f"p({name})": value for name, value in inner.items()}}
