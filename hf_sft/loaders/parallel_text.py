"""Parallel text: line i of one file is the translation of line i of the other."""

from itertools import islice
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, Features, Value
from pydantic import BaseModel, ConfigDict, field_validator

from hf_sft.errors import DataError, UserError
from hf_sft.loaders.base import Loader
from hf_sft.packed import read_bytes
from hf_sft.resources import Locate

MOST_LINES = 5  # blank lines that are named one by one
SIDES = ("source", "target")


class Pair(BaseModel):
    """The two files of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    target: str


class ParallelText(Loader):
    """Two UTF-8 files per split (also .gz), one sentence per line; columns source and target.

    Lines end at ``\\n`` alone, as Moses, sacreBLEU and WMT count them: other signs that look like a
    line's end do not shift the pairs. A line that is blank on one side only is a sign of files that
    do not belong together; ``blank: skip`` leaves such pairs out, as it does the pairs blank on
    both sides.

    Raises:
        DataError: files of different length, a line that is not UTF-8, a blank line; file and line
            are named.

    Keys:
        train, validation, test: {source: a file, target: a file} each.
        blank: refuse or skip pairs of which one side is blank.

    Example: {type: parallel-text, train: {source: train.en, target: train.de}, test_fraction: 0.1}
    """

    type: Literal["parallel-text"] = "parallel-text"
    train: Pair
    validation: Pair | None = None
    test: Pair | None = None
    blank: Literal["refuse", "skip"] = "refuse"

    @field_validator("train", "validation", "test", mode="before")
    @classmethod
    def _two_files(cls, given: Any) -> Any:
        if isinstance(given, str):
            raise ValueError("two files are wanted: {source: FILE, target: FILE}")
        return given

    def files(self) -> dict[str, str]:
        return {
            f"{split}.{side}": getattr(pair, side)
            for split, pair in self._pairs().items()
            for side in SIDES
        }

    def read(self, locate: Locate) -> DatasetDict:
        found, problems = {}, []
        for split, pair in self._pairs().items():
            try:
                found[split] = self._rows(split, pair, locate)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        return DatasetDict(found)

    def _pairs(self) -> dict[str, Pair]:
        pairs = {"train": self.train, "validation": self.validation, "test": self.test}
        return {split: pair for split, pair in pairs.items() if pair is not None}

    def _rows(self, split: str, pair: Pair, locate: Locate) -> Dataset:
        paths = {side: locate(getattr(pair, side)) for side in SIDES}
        places = {side: f"data.{split}.{side}: '{path.name}'" for side, path in paths.items()}
        lines = {side: read_lines(path, places[side]) for side, path in paths.items()}
        counts = {side: len(found) for side, found in lines.items()}
        if counts["source"] != counts["target"]:
            raise DataError(_unequal(places, counts))
        full = [bool(a.strip()) and bool(b.strip()) for a, b in zip(*lines.values(), strict=True)]
        if not all(full) and self.blank == "refuse":
            raise DataError("\n".join(_blank(places, lines)))
        kept = {
            side: [line for line, keep in zip(found, full, strict=True) if keep]
            for side, found in lines.items()
        }
        return Dataset.from_dict(kept, features=Features({side: Value("string") for side in SIDES}))


def read_lines(path: Path, where: str) -> list[str]:
    """The lines of a file, without their ends; the last one need not have an end.

    Raises:
        DataError: it cannot be read, or a line is not UTF-8.
    """
    try:
        raw = read_bytes(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read: {error}.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where} line {line} is not UTF-8. Save the file as UTF-8.") from error
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _unequal(places: dict[str, str], counts: dict[str, int]) -> str:
    shorter = min(SIDES, key=counts.__getitem__)
    longer = max(SIDES, key=counts.__getitem__)
    return (
        f"{places[longer]} has {counts[longer]} lines, {places[shorter]} has {counts[shorter]}: "
        f"line {counts[shorter] + 1} has no translation, and a line may be missing before it. "
        "Give two files whose lines belong together one by one."
    )


def _blank(places: dict[str, str], lines: dict[str, list[str]]) -> list[str]:
    """One problem for each of the first blank lines, and a count of the rest."""
    found = [
        f"{places[side]} line {number} is blank."
        for number, both in enumerate(zip(*lines.values(), strict=True), 1)
        for side, line in zip(SIDES, both, strict=True)
        if not line.strip()
    ]
    rest = len(found) - MOST_LINES
    more = [f"{rest} more blank lines in these files."] if rest > 0 else []
    remedy = "Remove the line from both files, or leave such pairs out with data.blank: skip."
    return [*islice(found, MOST_LINES), *more, remedy]
