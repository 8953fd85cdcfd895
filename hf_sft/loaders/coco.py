"""COCO's json: images, objects with boxes and shapes, and categories."""

from pathlib import Path
from typing import Literal

from hf_sft.errors import DataError, listing
from hf_sft.loaders.boxes import BoxLoader
from hf_sft.loaders.coco_files import read_coco
from hf_sft.loaders.objects import Parts
from hf_sft.resources import Locate

SPLITS = ("train", "validation", "test")


class Coco(BoxLoader):
    """One json per split, and the folder in which the images' ``file_name`` are found.

    A single json may be parted with ``test_fraction``. Source of the format: https://cocodataset.org/#format-data

    Keys:
        train, validation, test: COCO's json each.
        images: the folder that file names start in, or {split: folder}; the json's own by default.
        check_size: the json's width and height must be the image's.

    Example: {type: coco, train: annotations/train.json, images: photos}
    """

    type: Literal["coco"] = "coco"
    train: str
    validation: str | None = None
    test: str | None = None
    images: str | dict[Literal["train", "validation", "test"], str] | None = None
    check_size: bool = True

    def files(self) -> dict[str, str]:
        found = {split: getattr(self, split) for split in SPLITS}
        found = {split: name for split, name in found.items() if name is not None}
        if isinstance(self.images, str):
            found["images"] = self.images
        elif self.images:
            found |= {f"images.{split}": name for split, name in self.images.items()}
        return found

    def annotated(self, locate: Locate) -> tuple[Parts, list[str]]:
        parts: Parts = {}
        problems, names = [], []
        for split in SPLITS:
            if (name := getattr(self, split)) is None:
                continue
            try:
                folder = self._folder(split, locate)
                parts[split], found = read_coco(locate(name), folder, split, self.check_size)
                names += [name for name in found if name not in names]
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        return parts, names

    def _folder(self, split: str, locate: Locate) -> Path | None:
        """Where the images of a split lie; None for beside the json."""
        if self.images is None:
            return None
        if isinstance(self.images, str):
            return locate(self.images)
        if split not in self.images:
            raise DataError(
                f"data.images: no folder for {split}, only for {listing(self.images)}. Add it."
            )
        return locate(self.images[split])
