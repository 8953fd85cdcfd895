"""A folder of images: one folder per class, or a metadata file beside them."""

import glob
import logging
import os
from pathlib import Path
from typing import Literal

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset

from hf_sft.errors import DataError, listing
from hf_sft.images import ENDINGS
from hf_sft.loaders.base import Loader
from hf_sft.resources import Locate

SPLITS = {  # split -> what its folder may be called; beside a folder ``train``, all but the first
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
HIDDEN = (".", "__")  # .DS_Store, ._photo.jpg, __MACOSX

log = logging.getLogger(__name__)


class ImageFolder(Loader):
    """``path/[train|validation|test/]<class>/<image>``, or images with ``metadata.csv``/``.jsonl``.

    Only folders named so are splits, and ``val``, ``valid`` or ``dev`` beside ``train``, which is
    validation; images may lie deeper in the folder of their class. With a metadata file (column
    ``file_name``) its columns are the labels. What is hidden is passed over. Without ``labelled``,
    images may lie anywhere below ``path`` or its splits, and none is a class.

    Keys:
        path: a folder with one per class in it, or with metadata.csv.
        labelled: false: images anywhere below it, without classes.

    Example: {type: image-folder, path: pets, test_fraction: 0.2}
    """

    type: Literal["image-folder"] = "image-folder"
    path: str
    labelled: bool = True

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def read(self, locate: Locate) -> DatasetDict:
        folder = locate(self.path)
        if not folder.is_dir():
            raise DataError(f"data.path: {self.path!r} is a file; an image folder is wanted.")
        parts = self._parts(folder)
        files = {split: _visible_files(part) for split, part in parts.items()}
        if not self.labelled:
            return self._without_labels(parts, files)
        if any(file.name in METADATA for found in files.values() for file in found):
            return self._with_metadata(parts, files)
        images = {split: [f for f in found if _is_image(f)] for split, found in files.items()}
        self._refuse_stray(folder, parts, images)
        self._tell_unused(folder, parts, images)
        names = sorted({image.parts[0] for found in images.values() for image in found})
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        return DatasetDict({s: _rows(parts[s], found, features) for s, found in images.items()})

    def _parts(self, folder: Path) -> dict[str, Path]:
        """Split -> its folder; all of it is train where none is named like a split."""
        parts = {}
        for split, (usual, *others) in SPLITS.items():
            names = [usual, *others] if (folder / "train").is_dir() else [usual]
            found = [name for name in names if (folder / name).is_dir()]
            if len(found) > 1:
                raise DataError(
                    f"data.path: {self.path!r} has several folders for {split}: {listing(found)}. "
                    "Keep one of them, or put their images together."
                )
            if found:
                parts[split] = folder / found[0]
        return parts or {"train": folder}

    def _without_labels(self, parts: dict[str, Path], files: dict[str, list[Path]]) -> DatasetDict:
        images = {
            s: [str(parts[s] / f) for f in found if _is_image(f)] for s, found in files.items()
        }
        if not any(images.values()):
            raise DataError(f"data.path: {self.path!r} holds no images, nor do its folders.")
        features = Features({"image": Image()})
        rows = {s: Dataset.from_dict({"image": found}, features) for s, found in images.items()}
        return DatasetDict(rows)

    def _with_metadata(self, parts: dict[str, Path], files: dict[str, list[Path]]) -> DatasetDict:
        """Files named per split: left to itself ``load_dataset`` takes ``train_0.jpg`` for one."""
        patterns = {split: f"{glob.escape(str(part))}/**" for split, part in parts.items()}
        try:
            data = load_dataset("imagefolder", data_files=patterns)
        except Exception as error:  # datasets raises whatever a broken table leads it into
            raise DataError(
                f"data.path: {self.path!r} cannot be read with its metadata file: "
                f"{error.__cause__ or error}"
            ) from error
        for split, rows in data.items():
            listed = _paths(rows)
            images = [file for file in files[split] if _is_image(file)]
            if idle := [f for f in images if os.path.abspath(parts[split] / f) not in listed]:
                log.warning(
                    f"data.{split}: {len(idle)} of {len(images)} images are in no row of the "
                    f"metadata file and are not used: {listing(idle, 3)}. Add rows, or remove them."
                )
        return data

    def _refuse_stray(self, folder: Path, parts: dict, images: dict[str, list[Path]]) -> None:
        """Images that lie in no class folder: their class is unknown."""
        stray = {parts[s] / image for s, found in images.items() for image in found if _flat(image)}
        stray |= {file for file in folder.iterdir() if _is_image(file) and _is_visible(file.name)}
        if all(_flat(image) for found in images.values() for image in found):
            raise DataError(
                f"data.path: {self.path!r} holds no folder of images for each class, nor a metadata"
                f" file. It should look like {folder.name}/<class>/<image>, or {folder.name}/train/"
                "<class>/<image> with validation (or val) and test beside train; or name every "
                "image and its class in a metadata.csv with the columns file_name,label."
            )
        if stray:
            names = listing(sorted(image.relative_to(folder).as_posix() for image in stray))
            raise DataError(
                f"data.path: {self.path!r} has images outside its class folders: {names}. Move "
                "each into the folder of its class, or remove it."
            )

    def _tell_unused(self, folder: Path, parts: dict, images: dict[str, list[Path]]) -> None:
        """Folders that one could take for a class or a split."""
        for split, part in parts.items():
            used = {image.parts[0] for image in images[split]}
            if empty := [name for name in _folders(part) if name not in used]:
                log.warning(
                    f"data.path: no images in {listing(empty)}; there is no such class in {split}."
                )
        if folder not in parts.values() and (
            beside := sorted({*_folders(folder)} - {part.name for part in parts.values()})
        ):
            names = listing(name for known in SPLITS.values() for name in known)
            log.warning(
                f"data.path: {self.path!r} has the split folders "
                f"{listing(part.name for part in parts.values())}, so what is in "
                f"{listing(beside)} is not used. Names of splits: {names}."
            )


def _rows(part: Path, images: list[Path], features: Features) -> Dataset:
    paths = [str(part / image) for image in images]
    labels = features["label"].str2int([image.parts[0] for image in images])
    return Dataset.from_dict({"image": paths, "label": labels}, features=features)


def _paths(rows: Dataset) -> set[str]:
    """The files of all images in the rows."""
    found: set[str] = set()
    for name, kind in rows.features.items():
        if isinstance(kind, Image):
            undecoded = rows.select_columns([name]).cast_column(name, Image(decode=False))[name]
            found |= {os.path.abspath(image["path"]) for image in undecoded if image}
    return found


def _visible_files(part: Path) -> list[Path]:
    """Every file below ``part``, relative to it and sorted; nothing in a hidden folder."""
    found = []
    for place, folders, files in os.walk(part, followlinks=True):
        folders[:] = [name for name in folders if _is_visible(name)]
        here = Path(place).relative_to(part)
        found += [here / name for name in files if _is_visible(name)]
    return sorted(found)


def _folders(part: Path) -> list[str]:
    return sorted(path.name for path in part.iterdir() if path.is_dir() and _is_visible(path.name))


def _is_visible(name: str) -> bool:
    return not name.startswith(HIDDEN)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS


def _flat(image: Path) -> bool:
    return len(image.parts) == 1
