"""Pascal VOC: an xml file of boxes for every image, and lists of the images of each split."""

import os
import re
from pathlib import Path
from typing import Literal

from hf_sft.errors import DataError, listing, nearest
from hf_sft.loaders.boxes import BoxLoader
from hf_sft.loaders.objects import Annotated, Parts, few, refuse, sizes
from hf_sft.loaders.text_files import read_text
from hf_sft.loaders.voc_files import read_voc
from hf_sft.resources import Locate

SPLITS = {  # split -> what its list or folder is mostly called
    "train": ("train", "trainval"),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
LISTED = re.compile(r"(.*\S)\s+-?[01]")  # a class's list says whether the image shows it


class Voc(BoxLoader):
    """``path`` holds ``annotations`` (xml), ``images`` and a list or folder for each split.

    Without ``train``, ``validation`` and ``test`` they are found by name, as ``train.txt`` or
    ``ImageSets/Main/train.txt``; where there are none all annotations are train. A split may be a
    folder, too, with xml and images side by side. VOC's corners count pixels from
    1 and include the last one; ``one_based: false`` is for files that count edges from 0.
    Source of the format: Everingham et al. 2010, "The Pascal Visual Object Classes (VOC)
    Challenge" (IJCV 88).

    Keys:
        path: the folder of it all.
        annotations, images: folders in it.
        train, validation, test: a list of names, or a folder of xml and images; by default what is
            found as train.txt, ImageSets/Main/train.txt, ….
        difficult: keep the objects that are marked so.
        one_based: corners count pixels from 1, as VOC's do.
        check_size: the xml's width and height must be the image's.

    Example: {type: voc, path: bccd_part}
    """

    type: Literal["voc"] = "voc"
    path: str
    annotations: str = "Annotations"
    images: str = "JPEGImages"
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    difficult: bool = True
    one_based: bool = True
    check_size: bool = True

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def annotated(self, locate: Locate) -> tuple[Parts, list[str]]:
        folder = locate(self.path)
        parts: Parts = {}
        problems = []
        for split, place in self._places(folder).items():
            try:
                parts[split] = self._images(folder, split, place)
            except DataError as error:
                problems.append(str(error))
        refuse(problems)
        things = (thing for images in parts.values() for image in images for thing in image.things)
        names = sorted({thing.category for thing in things})
        if not names:
            raise DataError(
                f"data.path: no annotation in {self.path!r} has an object. Name the folder of "
                "those that have with data.annotations."
            )
        return parts, names

    def _places(self, folder: Path) -> dict[str, Path | None]:
        """Split -> its list or folder; None for all annotations."""
        if not folder.is_dir():
            raise DataError(f"data.path: {self.path!r} is a file; a VOC folder is wanted.")
        given = {split: getattr(self, split) for split in SPLITS}
        if any(given.values()):
            found = {split: folder / name for split, name in given.items() if name is not None}
            problems = [
                f"data.{split}: {given[split]!r} is not in {self.path!r}, which holds: "
                f"{listing(sorted(entry.name for entry in folder.iterdir()))}."
                f"{nearest(place.name, [entry.name for entry in folder.iterdir()])}"
                for split, place in found.items()
                if not os.path.exists(place)
            ]
            refuse(problems)
            return found
        found = {split: place for split in SPLITS if (place := list_of(folder, split))}
        return found or {"train": None}

    def _images(self, folder: Path, split: str, place: Path | None) -> list[Annotated]:
        """The images of one split, with objects and sizes."""
        files, problems = self._files(folder, split, place)
        images, bad = [], []
        for file, image_folder in files:
            try:
                images.append(read_voc(file, image_folder, self.one_based, self.difficult))
            except DataError as error:
                bad.append(str(error))
        problems += few(f"data.{split}:", bad)
        refuse(problems)
        if not images:
            raise DataError(
                f"data.{split}: no annotations there. Wanted: {folder.name}/{self.annotations}/"
                f"NAME.xml beside {folder.name}/{self.images}; name other folders with "
                "data.annotations and data.images."
            )
        refuse(self._measure(images, split))
        return [image for image, *_ in images]

    def _files(
        self, folder: Path, split: str, place: Path | None
    ) -> tuple[list[tuple[Path, Path]], list[str]]:
        """(xml, folder of its image) of each image of a split, and names that have no xml."""
        if place is not None and place.is_dir():
            return [(file, file.parent) for file in sorted(place.rglob("*.xml"))], []
        here, images = folder / self.annotations, folder / self.images
        if place is None:
            return [(file, images) for file in sorted(here.glob("*.xml"))], []
        files, bad = [], []
        for number, line in enumerate(read_text(place, f"data.{split}").split("\n"), 1):
            if name := line.strip():
                file = annotation_of(here, name)
                if file is None:
                    bad.append(f"line {number}: {name!r} has no file in '{self.annotations}'.")
                else:
                    files.append((file, images))
        bad += [f"names {file.stem!r} more than once." for file in repeated(files)]
        remedy = "Correct the list, or say which lists to read: data.train, data.test."
        lines = few(f"data.{split}: '{place.name}'", bad)
        return files, [*lines, f"data.{split}: {remedy}"] if bad else []

    def _measure(self, images: list[tuple[Annotated, tuple, str]], split: str) -> list[str]:
        """Give every image the size of its file; the files that are missing, broken or others."""
        found, bad = sizes([image.path for image, *_ in images])
        differ = []
        for (image, stated, file), size in zip(images, found, strict=True):
            image.width, image.height = size
            if self.check_size and all(stated) and (0, 0) != size != stated:
                differ.append(
                    f"'{file}' says {stated[0]} × {stated[1]} pixels, but '{image.name}' has "
                    f"{size[0]} × {size[1]}: its boxes would be elsewhere. Correct the one or the "
                    "other, or set data.check_size: false if the boxes are right."
                )
        return few(f"data.{split}:", bad) + few(f"data.{split}:", differ)


def list_of(folder: Path, split: str) -> Path | None:
    """The list of a split's images, or the folder with them, by its usual names."""
    for name in SPLITS[split]:
        for place in (folder / f"{name}.txt", folder / "ImageSets/Main" / f"{name}.txt"):
            if place.is_file():
                return place
    for name in SPLITS[split]:
        if (folder / name).is_dir() and any((folder / name).rglob("*.xml")):
            return folder / name
    return None


def annotation_of(folder: Path, name: str) -> Path | None:
    """The xml of a listed image; its line may say 1 or -1 behind the name, or name a file."""
    listed = LISTED.fullmatch(name)
    for stem in (name, listed[1] if listed else name):
        path = Path(stem.replace("\\", "/"))
        for candidate in (path.name, path.stem):
            if os.path.isfile(file := folder / f"{candidate}.xml"):
                return file
    return None


def repeated(files: list[tuple[Path, Path]]) -> list[Path]:
    """The files that stand in a list again."""
    seen: set[Path] = set()
    return [file for file, _ in files if file in seen or seen.add(file)]
