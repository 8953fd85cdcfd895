"""Predictions as files: csv, jsonl, or a folder; each takes its name when it is whole."""

import csv
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from hf_sft.errors import DataError


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
    """One line per record, in the columns of the first."""
    flat = _flat(first)
    writer = csv.DictWriter(file, flat)
    writer.writeheader()
    writer.writerow(flat)
    writer.writerows(_flat(record) for record in records)


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
