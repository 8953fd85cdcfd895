"""Images written as rows of pixel values in a csv, as MNIST often is."""

import io
from typing import Literal

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from pydantic import Field

from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate


class PixelTable(Loader):
    """Each row: height × width grey values 0..255 in row-major order, and one label.

    Gives the columns ``image`` and ``label``; lossless (PNG).
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
        return DatasetDict({s: self._read_file(s, n, locate) for s, n in self.files().items()})

    def _read_file(self, split: str, name: str, locate: Locate) -> Dataset:
        path = locate(name)
        try:
            table = pd.read_csv(path, header=0 if self.header else None)
        except (ValueError, UnicodeDecodeError, OSError) as error:
            raise DataError(f"data.{split}: '{path.name}' cannot be read: {error}") from error
        values = table.to_numpy()
        wanted = self.height * self.width + 1
        if values.shape[1] != wanted:
            raise DataError(
                f"data.{split}: '{path.name}' has {values.shape[1]} columns; {self.height} × "
                f"{self.width} pixels and a label need {wanted}. Correct data.height, data.width."
            )
        last = self.label_position == "last"
        pixels, labels = (values[:, :-1], values[:, -1]) if last else (values[:, 1:], values[:, 0])
        self._check(split, path.name, pixels)
        images = [self._png(row) for row in pixels.astype(np.uint8)]
        features = Features({"image": Image(), "label": Value("string")})
        labels = [None if pd.isna(label) else _plain(label) for label in labels]
        return Dataset.from_dict({"image": images, "label": labels}, features=features)

    def _check(self, split: str, file: str, pixels: np.ndarray) -> None:
        if pixels.dtype == object:
            raise DataError(f"data.{split}: '{file}' holds text among its pixel values.")
        bad = np.flatnonzero(~((pixels >= 0) & (pixels <= 255)).all(axis=1))
        if len(bad):
            raise DataError(
                f"data.{split}: '{file}' row {bad[0] + 1} has pixel values outside 0..255."
            )

    def _png(self, row: np.ndarray) -> dict[str, bytes | None]:
        buffer = io.BytesIO()
        Picture.fromarray(row.reshape(self.height, self.width)).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}


def _plain(label: object) -> str:
    """``3.0`` and ``3`` are the same class."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
