"""Images written as rows of pixel values in a csv, as MNIST often is."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from pydantic import Field

from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.packed import read_bytes
from hf_sft.resources import Locate


class PixelTable(Loader):
    """Each row: height × width grey values 0..255 in row-major order, and one label.

    Gives the columns ``image`` and ``label``; lossless (PNG).

    Keys:
        train, test: a csv each.
        height, width: pixels.
        label_position: where the label stands in a row.
        header: the first row holds names.

    Example: {type: pixel-table, train: digits.csv, test_fraction: 0.2}
    """

    type: Literal["pixel-table"] = "pixel-table"
    train: str
    test: str | None = None
    height: int = Field(28, ge=1)
    width: int = Field(28, ge=1)
    label_position: Literal["first", "last"] = "last"
    header: bool = False

    def files(self) -> dict[str, str]:
        return {"train": self.train} | ({"test": self.test} if self.test else {})

    def read(self, locate: Locate) -> DatasetDict:
        return self.read_each(locate, self._read_file)

    def _read_file(self, split: str, path: Path) -> Dataset:
        where = f"data.{split}: '{path.name}'"
        try:
            table = pd.read_csv(io.BytesIO(read_bytes(path)), header=0 if self.header else None)
        except (ValueError, OSError, OverflowError) as error:
            raise DataError(f"{where} cannot be read: {error}") from error
        wanted = self.height * self.width + 1
        if table.shape[1] != wanted:
            raise DataError(
                f"{where} has {table.shape[1]} columns; {self.height} × {self.width} pixels and a "
                f"label need {wanted}. Correct data.height, data.width."
            )
        label = table.columns[-1 if self.label_position == "last" else 0]
        pixels = self._checked(where, table.drop(columns=label))
        images = [self._png(row) for row in pixels]
        features = Features({"image": Image(), "label": Value("string")})
        labels = [None if pd.isna(value) else _plain(value) for value in table[label]]
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    def _checked(self, where: str, table: pd.DataFrame) -> np.ndarray:
        words = table.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]]
        if len(words):
            raise DataError(
                f"{where} holds text among its pixel values, as {table[words[0]].iloc[0]!r}. For a "
                "line of names set data.header: true; for labels in front, data.label_position: "
                "first."
            )
        pixels = table.to_numpy(dtype=float)  # (rows, height * width)
        bad = np.flatnonzero(~((pixels >= 0) & (pixels <= 255) & (pixels % 1 == 0)).all(axis=1))
        if len(bad):
            raise DataError(
                f"{where} row {bad[0] + 1} has pixel values that are no whole numbers in 0..255."
            )
        return pixels.astype(np.uint8)

    def _png(self, row: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Picture.fromarray(row.reshape(self.height, self.width)).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}


def _plain(label: object) -> str:
    """``3.0`` and ``3`` are the same class."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
