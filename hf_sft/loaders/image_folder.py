"""A folder of images: one folder per class, or a metadata file beside them."""

from typing import Literal

from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_sft.errors import DataError
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate


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
            return load_dataset("imagefolder", data_dir=str(folder))
        except (DatasetGenerationError, OSError, ValueError) as error:
            raise DataError(
                f"data.path: {self.path!r} holds no images by class, nor with a metadata file: "
                f"{error.__cause__ or error}"
            ) from error
