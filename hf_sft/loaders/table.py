"""Rows of a csv, tsv, json, jsonl or parquet file (also .gz), one file per split."""

from typing import Literal

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_sft.errors import DataError, listing
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

READERS = {
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "json": ("json", {}),
    "jsonl": ("json", {}),
    "parquet": ("parquet", {}),
}


class Table(Loader):
    """One file per split; the ending of its name tells the format."""

    type: Literal["table"] = "table"
    train: str
    validation: str | None = None
    test: str | None = None

    def files(self) -> dict[str, str]:
        names = {"train": self.train, "validation": self.validation, "test": self.test}
        return {key: name for key, name in names.items() if name is not None}

    def read(self, locate: Locate) -> DatasetDict:
        return DatasetDict(
            {split: self._read_file(split, name, locate) for split, name in self.files().items()}
        )

    def _read_file(self, split: str, name: str, locate: Locate):
        path = locate(name)
        ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
        if ending not in READERS:
            raise DataError(
                f"data.{split}: '{path.name}' ends in {ending!r}, which is no table. "
                f"Choices: {listing(READERS)} (also with .gz)."
            )
        if path.stat().st_size == 0:
            raise DataError(f"data.{split}: '{path.name}' is an empty file.")
        reader, options = READERS[ending]
        try:
            return load_dataset(reader, data_files=str(path), split="train", **options)
        except (DatasetGenerationError, ValueError) as error:
            reason = error.__cause__ or error
            raise DataError(f"data.{split}: '{path.name}' cannot be read: {reason}") from error
