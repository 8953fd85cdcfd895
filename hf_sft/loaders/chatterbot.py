"""Statements of a chatterbot-corpus language folder, labelled with their topic."""

from pathlib import Path
from typing import Literal

import yaml
from datasets import Dataset, DatasetDict, Features, Value

from hf_sft.bounded import bounded
from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate


class Chatterbot(Loader):
    """One YAML file per topic, each a list of conversations; gives columns ``text`` and ``label``.

    The first statement of every conversation is taken (``statements: first``), or all of them; a
    statement that occurs under several topics has no one answer and is left out, and a repeated
    one counts once. Source of the format: https://github.com/gunthercox/chatterbot-corpus

    Keys:
        path: the folder of the corpus; the installed English one by default.
        statements: the first of each conversation, or all.
    """

    type: Literal["chatterbot"] = "chatterbot"
    path: str = "package:chatterbot_corpus/data/english"
    statements: Literal["first", "all"] = "all"

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def read(self, locate: Locate) -> DatasetDict:
        topics: dict[str, set[str]] = {}
        files = sorted(locate(self.path).glob("*.yml"))
        if not files:
            raise DataError(f"data.path: {self.path!r} holds no .yml files.")
        for file in files:
            for statement in self._statements(file):
                topics.setdefault(statement, set()).add(file.stem)
        rows = [(text, *found) for text, found in topics.items() if len(found) == 1]
        features = Features({"text": Value("string"), "label": Value("string")})
        columns = {"text": [text for text, _ in rows], "label": [topic for _, topic in rows]}
        return DatasetDict({"train": Dataset.from_dict(columns, features=features)})

    def _statements(self, file: Path) -> list[str]:
        most = 1 if self.statements == "first" else None
        try:
            conversations = bounded(yaml.safe_load(file.read_text("utf-8")))["conversations"]
            found = [str(text).strip() for talk in conversations for text in talk[:most]]
        except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"data.path: '{file.name}' is no chatterbot corpus: {error}") from error
        return [text for text in found if text]
