"""Large tables in memory go to a file, so that what is made of them does as well."""

import tempfile
from pathlib import Path

from datasets import Dataset, DatasetDict, load_from_disk

LARGE = 2**26  # bytes of a table that may stay in memory
_folders: list[tempfile.TemporaryDirectory] = []  # gone when the process ends


def on_disk(data: DatasetDict) -> DatasetDict:
    """The same rows, those of large tables read from a temporary file when they are needed.

    ``Dataset.map`` keeps what it makes of a table in memory there too, and what it makes of a file
    in a file beside it: encoding takes memory that does not grow with the rows. Images are not
    moved; their tables hold paths.
    """
    return DatasetDict(
        {split: _moved(rows) if _moves(rows) else rows for split, rows in data.items()}
    )


def _moves(rows: Dataset) -> bool:
    inside = not rows.cache_files and rows.data.nbytes > LARGE
    return inside and "Image(" not in str(rows.features)


def _moved(rows: Dataset) -> Dataset:
    folder = tempfile.TemporaryDirectory(prefix="hf_sft-", ignore_cleanup_errors=True)
    _folders.append(folder)
    rows.save_to_disk(Path(folder.name) / "rows")
    return load_from_disk(Path(folder.name) / "rows")
