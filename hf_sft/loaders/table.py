"""Rows of a csv, tsv, json, jsonl or parquet file (also .gz), one file per split."""

from typing import Literal

from datasets import DatasetDict

from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate
from hf_sft.table_files import beside, read_table


class Table(Loader):
    """One file per split; the ending of its name tells the format.

    Names of pictures or sounds start in the folder of the file that names them.

    Keys:
        train, validation, test: one csv, tsv, json, jsonl or parquet file each (also .gz).

    Example: {type: table, train: reviews/train.csv, test: reviews/test.csv}
    """

    type: Literal["table"] = "table"
    train: str
    validation: str | None = None
    test: str | None = None

    def files(self) -> dict[str, str]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: name for key, name in names.items() if name is not None}

    def read(self, locate: Locate) -> DatasetDict:
        return self.read_each(
            locate, lambda split, path: beside(read_table(path, f"data.{split}"), path.parent)
        )
