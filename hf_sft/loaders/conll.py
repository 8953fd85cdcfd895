"""CoNLL columns: one word per line with its tags, a blank line after every sentence."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict, Features, List, Value
from pydantic import Field, field_validator

from hf_sft.errors import DataError, listing
from hf_sft.loaders.base import Loader
from hf_sft.loaders.text_files import read_text
from hf_sft.resources import Locate

DOCUMENT = "-DOCSTART-"  # a line of CoNLL-2003 that begins a document and is no word
PLACE = {"file": Value("string"), "lines": List(Value("int32"))}
MOST_PROBLEMS = 5

Line = tuple[int, list[str]]  # its number from 1, its cells


class Conll(Loader):
    """One file per split, its columns parted by tabs where the first word's line has one, else by
    spaces; gives a row per sentence.

    ``fields``: new column -> number of the file's, from 0 on, or from -1, the last, backwards.
    ``skip``: a regular expression; lines that begin with it are passed over (comments). The columns
    ``file`` and ``lines`` say where every word stands, for messages.

    Raises:
        DataError: with file and line, a line of more or fewer columns, or without a word; no UTF-8.

    Source of the format: https://www.clips.uantwerpen.be/conll2003/ner/

    Keys:
        train, validation, test: one file each.
        fields: column -> its number, from 0, or from -1 backwards.
        skip: a regular expression for the lines that are comments.

    Example: {type: conll, train: wnut17/train.conll, test: wnut17/test.conll}
    """

    type: Literal["conll"] = "conll"
    train: str
    validation: str | None = None
    test: str | None = None
    fields: dict[str, int] = Field({"tokens": 0, "tags": -1}, min_length=1)
    skip: str | None = None

    @field_validator("fields")
    @classmethod
    def _places_are_ours(cls, fields: dict[str, int]) -> dict[str, int]:
        if taken := sorted(fields.keys() & PLACE.keys()):
            raise ValueError(f"{listing(taken)} is where the words stand; take another name")
        return fields

    @field_validator("skip")
    @classmethod
    def _an_expression(cls, skip: str | None) -> str | None:
        try:
            re.compile(skip or "")
        except re.error as error:
            raise ValueError(f"should be a regular expression: {error}") from error
        return skip

    def files(self) -> dict[str, str]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: name for key, name in names.items() if name is not None}

    def read(self, locate: Locate) -> DatasetDict:
        return self.read_each(locate, self._rows)

    def _rows(self, split: str, path: Path) -> Dataset:
        where = f"data.{split}: '{path.name}'"
        sentences = list(_sentences(self._lines(read_text(path, f"data.{split}"))))
        words = [line for sentence in sentences for line in sentence]
        if not words:
            raise DataError(f"{where} holds no words.")
        self._refuse_bad(words, where)
        columns = {
            name: [[cells[column] for _, cells in sentence] for sentence in sentences]
            for name, column in self.fields.items()
        }
        columns["file"] = [path.name] * len(sentences)
        columns["lines"] = [[number for number, _ in sentence] for sentence in sentences]
        texts = {name: List(Value("string")) for name in self.fields}
        return Dataset.from_dict(columns, features=Features(texts | PLACE))

    def _lines(self, content: str) -> Iterator[Line]:
        """Every line that is not passed over, a blank one without cells."""
        skip = re.compile(self.skip) if self.skip else None
        part = None
        for number, line in enumerate(content.split("\n"), 1):
            if not line.strip():
                yield number, []
            elif skip is None or not skip.match(line):
                part = part or re.compile("\t" if "\t" in line else "[ \t]+")
                yield number, [cell.strip(" ") for cell in part.split(line.strip(" "))]

    def _refuse_bad(self, words: list[Line], where: str) -> None:
        first, cells = words[0]
        width = len(cells)
        problems = [
            f"data.fields.{name}: there is no column {column} in {where.partition(' ')[2]}, whose "
            f"line {first} has {width}: {listing(map(repr, cells))}. They are numbered from 0."
            for name, column in self.fields.items()
            if not -width <= column < width
        ]
        if problems:
            raise DataError("\n".join(problems))
        for number, found in words:
            if len(found) != width:
                problems.append(
                    f"{where} line {number} has {len(found)} columns ({listing(map(repr, found))}),"
                    f" line {first} has {width}. Correct the line, or pass it over with data.skip."
                )
            elif empty := [name for name, column in self.fields.items() if not found[column]]:
                problems.append(
                    f"{where} line {number} has nothing in the column of {listing(empty)}. Fill it "
                    "in, or remove the line."
                )
        if problems:
            rest = len(problems) - MOST_PROBLEMS
            more = [f"{where}: {rest} more lines like these."] if rest > 0 else []
            raise DataError("\n".join([*problems[:MOST_PROBLEMS], *more]))


def _sentences(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Runs of lines with words, parted by blank lines and by the beginnings of documents."""
    sentence: list[Line] = []
    for number, cells in lines:
        if cells and cells[0] != DOCUMENT:
            sentence.append((number, cells))
        elif sentence:
            yield sentence
            sentence = []
    if sentence:
        yield sentence
