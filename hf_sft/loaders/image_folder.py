"""A folder of images: one folder per class, or a metadata file beside them."""

import glob
from pathlib import Path
from typing import Literal

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

SPLITS = ("train", "validation", "test")


class ImageFolder(Loader):
    """``path/[train|validation|test/]<class>/<image>``, or images with ``metadata.csv``/``.jsonl``.

    With a metadata file (column ``file_name``) its columns are the labels.
    """

    type: Literal["image-folder"] = "image-folder"
    path: str

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def read(self, locate: Locate) -> DatasetDict:
        folder = locate(self.path)
        if not folder.is_dir():
            raise DataError(f"data.path: {self.path!r} is a file; an image folder is wanted.")
        try:
            return load_dataset("imagefolder", data_files=self._parts(folder))
        except (DatasetGenerationError, OSError, ValueError) as error:
            raise DataError(
                f"data.path: {self.path!r} holds no images by class, nor with a metadata file: "
                f"{error.__cause__ or error}"
            ) from error

    def _parts(self, folder: Path) -> dict[str, str]:
        """Split -> pattern of its files: only folders named so are splits, never a file or class.

        Left to itself, ``load_dataset`` takes ``train_0.jpg`` or a class ``dev`` for a split.
        """
        root = glob.escape(str(folder))
        parts = {s: f"{root}/{s}/**" for s in SPLITS if (folder / s).is_dir()}
        return parts or {"train": f"{root}/**"}
