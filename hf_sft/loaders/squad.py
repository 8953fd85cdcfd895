"""SQuAD's json (nested by article, or flat rows), one file or several languages per split."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from datasets import DatasetDict, concatenate_datasets
from pydantic import Field

from hf_sft.errors import DataError, UserError
from hf_sft.loaders.base import Loader
from hf_sft.loaders.squad_groups import with_joint_titles
from hf_sft.resources import Locate
from hf_sft.squad_files import read_squad

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")
NO_LANGUAGES = {"all", "big", "dev", "fix", "min", "new", "old", "out", "qa", "raw", "val"}
Files = (
    str | Annotated[list[str], Field(min_length=1)] | Annotated[dict[str, str], Field(min_length=1)]
)


class Squad(Loader):
    """Questions about texts, with answers that are parts of them (Rajpurkar et al. 2016, 2018).

    A split is a file, a list of files, or {language: file}. In a list, the language is what the
    name says (``xquad.de.json``). Parts that are carved from train keep the questions of one
    article, its ``title``, together in all languages: otherwise a text is in both parts. Where
    titles are translated or missing, ids tell what belongs together, or else the rows' places.

    Keys:
        train, validation, test: SQuAD's json: a file, a list of files, or {language: file} each.

    Example: {type: squad, train: train-v2.0.json, validation: dev-v2.0.json}
    """

    type: Literal["squad"] = "squad"
    train: Files
    validation: Files | None = None
    test: Files | None = None
    group: str | None = "title"

    def files(self) -> dict[str, str]:
        return {key: name for _, key, name, _ in self._each()}

    def read(self, locate: Locate) -> DatasetDict:
        files, problems = [], []
        for split, key, name, language in self._each():
            try:
                files.append((split, read_squad(locate(name), f"data.{key}", language)))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        found: dict[str, list] = {}
        for (split, _), rows in zip(files, with_joint_titles(files), strict=True):
            found.setdefault(split, []).append(rows)
        return DatasetDict({s: concatenate_datasets(parts) for s, parts in found.items()})

    def _each(self):
        """(split, recipe key, file, language or None) of every file."""
        for split in ("train", "validation", "test"):
            given = getattr(self, split)
            if isinstance(given, dict):
                yield from ((split, f"{split}.{key}", name, key) for key, name in given.items())
            elif isinstance(given, list):
                for number, name in enumerate(given):
                    yield split, f"{split}.{number}", name, language_of(name)
            elif given is not None:
                yield split, split, given, language_of(given)


def language_of(name: str) -> str | None:
    """What stands before the file's ending, if it looks like a language: ``xquad.de.json``."""
    parts = PurePosixPath(name.removesuffix(".gz")).name.split(".")
    found = len(parts) > 2 and LANGUAGE.fullmatch(parts[-2]) and parts[-2] not in NO_LANGUAGES
    return parts[-2] if found else None
