"""Folders of images and of masks whose pixels are numbers or colours of classes."""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List
from PIL import Image as Picture
from pydantic import Field, field_validator

from hf_sft import images
from hf_sft.errors import DataError, listing
from hf_sft.loaders.base import Loader
from hf_sft.loaders.mask_files import Pair, pairs
from hf_sft.loaders.text_files import read_text
from hf_sft.resources import Locate

IGNORE = 255  # what a colour named ``ignore`` becomes: the task's own default for no class
NAMES = "classes.txt"
MOST = 5  # problems that are listed one by one
Colour = tuple[int, int, int]


class MaskFolder(Loader):
    """``path/[train|validation|test/]images/<name>.jpg`` with ``…/masks/<name>.png``.

    The folders of the splits may stand above or below those of images and masks. A mask's pixels
    are class numbers (grey or palette PNG), or colours that ``palette`` names in the order of the
    classes; its entry ``ignore`` is no class. ``suffix``: what follows the image's name in the
    mask's. Names come from ``classes``, the palette, a ``classes.txt`` in ``path``, or the task.

    Keys:
        path: a folder, in it train, validation (or val, valid, dev), test or none.
        images, masks: the folders of images and of masks of the same names, in each split or around
            the splits.
        suffix: what follows the image's name in the mask's.
        classes: names in order; the lines of classes.txt by default.
        palette: {class: [red, green, blue]}; by default a mask's pixels are numbers.

    Example: {type: mask-folder, path: streets, classes: [road, car, person]}
    """

    type: Literal["mask-folder"] = "mask-folder"
    path: str
    images: str = "images"
    masks: str = "masks"
    suffix: str = ""
    classes: list[str] | None = Field(None, min_length=2)
    palette: dict[str, Colour] | None = Field(None, min_length=2)

    @field_validator("palette")
    @classmethod
    def _colours_differ(cls, palette: dict[str, Colour] | None) -> dict[str, Colour] | None:
        colours = list((palette or {}).values())
        for name, colour in (palette or {}).items():
            if not all(0 <= part <= 255 for part in colour):
                raise ValueError(f"{name}: {list(colour)}; red, green and blue are 0 to 255")
            if colours.count(colour) > 1:
                raise ValueError(f"{name}: two classes have the colour {list(colour)}")
        return palette

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def read(self, locate: Locate) -> DatasetDict:
        folder = locate(self.path)
        if not folder.is_dir():
            raise DataError(f"data.path: {self.path!r} is a file; a folder is wanted.")
        found = pairs(folder, self.images, self.masks, self.suffix)
        names = self._names(folder)
        features = {"image": Image(), "mask": Image()}
        if names:
            features["classes"] = List(ClassLabel(names=names))
        return DatasetDict(
            {split: self._rows(split, found[split], Features(features)) for split in found}
        )

    def _names(self, folder: Path) -> list[str] | None:
        """The classes in the order of their numbers; None where only the task can know."""
        coloured = [name for name in self.palette or {} if name != "ignore"]
        file = folder / NAMES
        if self.classes and coloured and self.classes != coloured:
            raise DataError(
                f"data.classes: {listing(self.classes)} are not the palette's {listing(coloured)}. "
                "Leave classes out: the palette names them in order."
            )
        if self.classes or coloured:
            return self.classes or coloured
        if not file.is_file():
            return None
        lines = read_text(file, "data.path").split("\n")
        names = [line.strip() for line in lines if line.strip()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"data.path: '{NAMES}' names {listing(twice)} twice. Name them apart.")
        return names

    def _rows(self, split: str, found: list[Pair], features: Features) -> Dataset:
        masks: list[Any] = [str(pair.mask) for pair in found]
        if self.palette:
            read = list(images.each(self._numbered, [pair.mask for pair in found]))
            if bad := [problem for problem in read if isinstance(problem, str)]:
                rest = f"\ndata.{split}: {len(bad) - MOST} more masks like these."
                shown = "\n".join(f"data.{split}: {line}" for line in bad[:MOST])
                raise DataError(shown + (rest if len(bad) > MOST else ""))
            masks = [  # the path of a file that exists would be kept in place of the bytes
                {"path": f"{pair.mask.name} (by data.palette)", "bytes": content}
                for pair, content in zip(found, read, strict=True)
            ]
        rows = {"image": [str(pair.image) for pair in found], "mask": masks}
        if "classes" in features:
            rows["classes"] = [[] for _ in found]
        return Dataset.from_dict(rows, features=features)

    def _numbered(self, path: Path) -> bytes | str:
        """A coloured mask as a grey PNG of class numbers; or what is wrong with it."""
        if (problem := images.problem_of(path)) is not None:
            return problem
        with Picture.open(path) as picture:
            colours = np.asarray(picture.convert("RGB")).astype(np.int64)
        codes = colours @ np.array([1 << 16, 1 << 8, 1])
        numbers = np.full(codes.shape, IGNORE, dtype=np.uint8)
        known, number = np.zeros(codes.shape, dtype=bool), 0
        for name, (red, green, blue) in (self.palette or {}).items():
            here = codes == (red << 16 | green << 8 | blue)
            known |= here
            if name != "ignore":
                numbers[here], number = number, number + 1
        if not known.all():
            row, column = np.argwhere(~known)[0].tolist()
            return (
                f"'{path}' has the colour {colours[row, column].tolist()} at x {column}, y {row}, "
                f"which is not in data.palette. Add it, or name it ignore."
            )
        file = io.BytesIO()
        Picture.fromarray(numbers).save(file, "PNG", compress_level=1)
        return file.getvalue()
