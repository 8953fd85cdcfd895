"""Plain text in UTF-8 files, one example per line, paragraph or document."""

import re
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict, Features, Value

from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

BLANK = re.compile(r"\n[^\S\n]*(?:\n[^\S\n]*)+")  # a paragraph ends where a line is empty


class TextFiles(Loader):
    """One ``.txt`` file, or a folder of them, per split; gives a column ``text``.

    ``by: line`` takes every line that is not blank, ``paragraph`` what blank lines part,
    ``document`` a whole file. The files of a folder, and of the folders in it, come in the order
    of their paths.

    Raises:
        DataError: a file that is not UTF-8, with its line; one without text; no ``.txt`` there.

    Keys:
        train, validation, test: a .txt file or a folder of them each.
        by: what a row is.

    Example: {type: text-files, train: letters, test_fraction: 0.1}
    """

    type: Literal["text-files"] = "text-files"
    train: str
    validation: str | None = None
    test: str | None = None
    by: Literal["line", "paragraph", "document"] = "line"

    def files(self) -> dict[str, str]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: name for key, name in names.items() if name is not None}

    def read(self, locate: Locate) -> DatasetDict:
        return self.read_each(locate, self._rows)

    def _rows(self, split: str, path: Path) -> Dataset:
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"data.{split}: folder '{path.name}' holds no .txt files.")
        texts, problems = [], []
        for file in files:
            try:
                texts += self._texts(read_text(file, f"data.{split}"))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        if not texts:
            raise DataError(f"data.{split}: '{path.name}' holds no text, only blank lines.")
        return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))

    def _texts(self, content: str) -> list[str]:
        if self.by == "document":
            parts = [content.strip("\n")]
        else:
            parts = content.split("\n") if self.by == "line" else BLANK.split(content)
        return [part.strip("\n") for part in parts if part.strip()]


def read_text(file: Path, place: str) -> str:
    """The content of a file, its line ends as ``\\n``; ``place`` is the recipe key that names it.

    Raises:
        DataError: it cannot be read, or is not UTF-8; the line is named.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{place}: '{file.name}' cannot be read: {error}") from error
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{place}: '{file.name}' line {line} is not UTF-8. Save the file as UTF-8."
        ) from error
