"""CLINC150: intents of a task-driven system, and queries that are out of its scope."""

import json
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, Features, Value

from hf_sft.errors import DataError, listing
from hf_sft.json_text import parsed
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

SPLITS = {"train": "train", "validation": "val", "test": "test"}
OUT = "oos_"  # before the split's name: its rows that belong to no intent
FORM = "{split: [[text, intent], …]} with train, val, test and oos_train, oos_val, oos_test"


class Clinc(Loader):
    """One json file, ``{split: [[text, intent], …]}``; gives columns ``text`` and ``label``.

    ``out_of_scope``: the rows that belong to no intent are a class of their own (the file's
    ``oos``), or are left out. Source of the format: Larson et al. 2019, "An Evaluation Dataset for
    Intent Classification and Out-of-Scope Prediction" (EMNLP, arXiv 1909.02027),
    https://github.com/clinc/oos-eval

    Keys:
        path: the json file of CLINC150.
        out_of_scope: its rows are a class of their own, or are left out.

    Example: {type: clinc, path: clinc150/data_small.json}
    """

    type: Literal["clinc"] = "clinc"
    path: str
    out_of_scope: bool = True

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def read(self, locate: Locate) -> DatasetDict:
        where = f"data.path: '{Path(self.path).name}'"
        found = _object(locate(self.path), where)
        problems = [line for key, rows in found.items() for line in _bad_rows(rows, key, where)]
        if problems:
            raise DataError("\n".join(problems))
        parts = {split: [*found.get(key, [])] for split, key in SPLITS.items()}
        outside = {split: found.get(OUT + key, []) for split, key in SPLITS.items()}
        if self.out_of_scope:
            if any(outside.values()) and not outside["train"]:
                raise DataError(
                    f"{where} has out-of-scope rows but none to learn from ({OUT}train). Add "
                    "some, or leave them out with data.out_of_scope: false."
                )
            parts = {split: parts[split] + outside[split] for split in parts}
        return DatasetDict({split: _dataset(rows) for split, rows in parts.items() if rows})


def _object(path: Path, where: str) -> dict[str, Any]:
    """The file's splits; the known ones only."""
    try:
        found = parsed(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:  # bytes that are not UTF-8 are a ValueError
        raise DataError(f"{where} cannot be read as json ({error}). Wanted: {FORM}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{where} holds {type(found).__name__}, not an object. Wanted: {FORM}.")
    known = [*SPLITS.values(), *(OUT + key for key in SPLITS.values())]
    if "train" not in found:
        raise DataError(f"{where} has no split 'train', but: {listing(found)}. Wanted: {FORM}.")
    return {key: found[key] for key in known if key in found}


def _bad_rows(rows: Any, key: str, where: str) -> list[str]:
    """A line for the first row that is no pair of texts."""
    if not isinstance(rows, list):
        return [f"{where} {key} is no list of rows. Wanted: {FORM}."]
    for number, row in enumerate(rows, 1):
        if not _is_pair(row):
            shown = json.dumps(row, ensure_ascii=False)[:60]
            return [
                f"{where} {key} row {number} is {shown}; wanted [text, intent], neither empty. "
                "Correct or remove the row."
            ]
    return []


def _is_pair(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 2
        and all(isinstance(value, str) and value.strip() for value in row)
    )


def _dataset(rows: list[list[str]]) -> Dataset:
    features = Features({"text": Value("string"), "label": Value("string")})
    columns = {"text": [text for text, _ in rows], "label": [intent for _, intent in rows]}
    return Dataset.from_dict(columns, features=features)
