"""What tasks on texts share: columns of text, and files of them to predict."""

import logging
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, Value

from hf_sft.errors import DataError, listing
from hf_sft.table_files import ENDINGS, ending, read_table
from hf_sft.tasks.labels import first_few

log = logging.getLogger(__name__)

SHOWN = 400  # letters of a text that a report repeats
SILENCE = "the model would learn to say nothing. Write one, or remove the row"


def as_text(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """The rows with these columns as text where they hold numbers: a text may be the number 7."""
    for column in columns:
        if getattr(rows.features[column], "dtype", "").startswith(("int", "float", "bool")):
            rows = rows.cast_column(column, Value("string"))
    return rows


def with_texts(path: Path, rows: Dataset, columns: Sequence[str]) -> Dataset:
    """The rows that are to be predicted: without those where one of these cells is empty.

    How many they are is told, with the numbers of the first.

    Raises:
        DataError: no row is left.
    """
    cells = zip(*(rows[column] for column in columns), strict=True)
    empty = [number for number, row in enumerate(cells) if any(value is None for value in row)]
    if not empty:
        return rows
    if len(empty) == len(rows):
        raise DataError(f"'{path}': no row has a value in {listing(columns)}.")
    log.warning(
        "%s: %d of %d rows are left out, as %s is empty: row %s.",
        path.name, len(empty), len(rows), listing(columns), listing((n + 1 for n in empty), 5),
    )  # fmt: skip
    gone = {*empty}
    return rows.select([number for number in range(len(rows)) if number not in gone])


def text_problems(place: str, rows: Dataset, columns: Sequence[str]) -> list[str]:
    """A line for each of the first values in these columns that are no text."""
    problems = [
        f"row {number}: {column!r} is {said_of(value)}. Correct or remove the row."
        for column in columns
        for number, value in enumerate(rows[column], 1)
        if not isinstance(value, str)
    ]
    return first_few(place, problems)


def said_of(value: object) -> str:
    """What is wrong with a value that should be a text."""
    return "empty" if value is None else f"{value!r}, not a text"


def empty_texts(place: str, rows: Dataset, column: str | None) -> list[str]:
    """A line for each of the first answers in a column, if there is one, that say nothing."""
    problems = [
        f"row {number}: {column!r} is empty: {SILENCE}."
        for number, text in enumerate(rows[column] if column else [], 1)
        if isinstance(text, str) and not text.strip()
    ]
    return first_few(place, problems)


def no_classes(keep: list | None) -> None:
    """``data.keep_labels`` means nothing where there are no classes.

    Raises:
        DataError: it is set.
    """
    if keep is not None:
        raise DataError("data.keep_labels: this task has no classes. Leave the key out.")


def lines_or_table(path: Path, column: str) -> Dataset:
    """A table of rows, or a text file whose lines (ended by \\n) become ``column``.

    Raises:
        DataError: a folder, no text there, or no UTF-8.
    """
    if path.is_dir():
        raise DataError(f"'{path}' is a folder. Give a text file, or a table of texts.")
    if ending(path) in ENDINGS:
        rows = read_table(path, "")
    else:
        try:
            lines = path.read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"'{path}' cannot be read as lines of text ({error}). Give a UTF-8 text file, or "
                f"a table ({listing(ENDINGS)})."
            ) from error
        texts = [line.removesuffix("\r") for line in lines if line.strip()]
        if blank := len(lines) - (lines[-1] == "") - len(texts):
            log.warning("%s: %d blank lines are left out.", path.name, blank)
        rows = Dataset.from_dict({column: texts})
    if len(rows) == 0:
        raise DataError(f"'{path}': no texts there.")
    return rows


def beginning(text: str) -> str:
    """As much of it as a report repeats."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
