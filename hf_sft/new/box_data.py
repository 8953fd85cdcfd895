"""Annotations of boxes in a folder: COCO's json, Pascal VOC's xml, YOLO's data.yaml."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hf_sft.bounded import bounded
from hf_sft.errors import DataError, listing
from hf_sft.loaders.voc import Voc
from hf_sft.loaders.yolo_layout import CLASSES, YAMLS

NAMED = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
COCO_KEYS = (b'"images"', b'"annotations"', b'"categories"', b'"bbox"')
PEEK = 4096  # bytes of an xml, to see what it begins with

Written = Callable[[Path], str]
Split = Callable[[Path], str | None]


def is_coco(file: Path) -> bool:
    """Whether a json has images, annotations with boxes, and categories; it is not parsed."""
    try:
        raw = file.read_bytes()
    except OSError:
        return False
    return all(key in raw for key in COCO_KEYS) and NAMED.search(raw) is not None


def coco_block(jsons: dict[str, Path], files: list[Path], written: Written) -> dict[str, Any]:
    """The json of each split, and the folder in which its images are."""
    block: dict[str, Any] = {"type": "coco"}
    block |= {split: written(file) for split, file in jsons.items()}
    folders = {split: _folder_of(file, files) for split, file in jsons.items()}
    if all(folders[split] == file.parent for split, file in jsons.items()):
        return block
    if len(set(folders.values())) == 1:
        return block | {"images": written(next(iter(folders.values())))}
    return block | {"images": {split: written(folder) for split, folder in folders.items()}}


def _folder_of(file: Path, files: list[Path]) -> Path:
    """Where the first images that a json names are found; its own folder if nowhere."""
    names = [json.loads(found) for found in NAMED.findall(file.read_bytes())[:5]]
    have = set(files)
    above = {parent for place in files for parent in place.parents}
    ranked = [file.parent, *sorted(above, key=lambda folder: (-len(folder.parts), str(folder)))]
    hits = {folder: sum(folder / name in have for name in names) for folder in ranked}
    return max(ranked, key=lambda folder: hits[folder])  # the first of equals


def by_split(jsons: list[Path], path: Path, split_of: Split) -> dict[str, Path]:
    """Split -> json: by the file's name, else by its folder's."""
    if len(jsons) == 1:
        return {"train": jsons[0]}
    found: dict[str, list[Path]] = {}
    for file in jsons:
        split = split_of(file) or (split_of(file.parent) if file.parent != path else None)
        if split:
            found.setdefault(split, []).append(file)
    for split, several in found.items():  # person_keypoints_train2017.json lies beside it
        instances = [file for file in several if file.name.startswith("instances")]
        found[split] = instances or several
    unclear = [file for several in found.values() if len(several) > 1 for file in several]
    if unclear or "train" not in found:
        names = listing(file.relative_to(path).as_posix() for file in unclear or jsons)
        raise DataError(
            f"DATA: folder '{path.name}' holds several COCO files: {names}. Name the one to train "
            "on as DATA, and others with data.validation=FILE data.test=FILE."
        )
    return {split: several[0] for split, several in found.items()}


def is_voc(file: Path) -> bool:
    """Whether an xml begins as an annotation."""
    try:
        with file.open("rb") as opened:
            return b"<annotation" in opened.read(PEEK)
    except OSError:
        return False


def voc_block(path: Path, xml: list[Path], images: list[Path], written: Written) -> dict[str, Any]:
    """The folder of annotations and the one with images of their names."""
    notes = {file.parent for file in xml}
    if len(notes) > 1 or (here := xml[0].parent) == path:
        return {"type": "voc", "path": written(path), "annotations": ".", "images": "."}
    stems = {file.stem for file in xml[:50]}
    hits: dict[Path, int] = {}
    for image in images:
        hits[image.parent] = hits.get(image.parent, 0) + (image.stem in stems)
    folder = max(sorted(hits), key=lambda place: hits[place])
    base = here.parent if folder.is_relative_to(here.parent) else path
    keys = {
        "annotations": here.relative_to(base).as_posix(),
        "images": folder.relative_to(base).as_posix(),
    }
    usual = {key: Voc.model_fields[key].default for key in keys}
    return {"type": "voc", "path": written(base)} | {k: v for k, v in keys.items() if v != usual[k]}


def is_yolo(file: Path) -> bool:
    """Whether it is a data.yaml: yaml with names of classes."""
    if file.suffix.lower() not in (".yaml", ".yml"):
        return False
    try:
        found = bounded(yaml.safe_load(file.read_text("utf-8-sig")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return False
    return isinstance(found, dict) and "names" in found and bool({"train", "nc"} & set(found))


def yolo_place(path: Path, files: list[Path]) -> Path | None:
    """The data.yaml nearest to the top, or a folder with the names of classes and labels."""
    for file in sorted(files, key=lambda file: (len(file.parts), file.name not in YAMLS, file)):
        if is_yolo(file):
            return file
    labels = any(file.suffix == ".txt" and "labels" in file.parts for file in files)
    return path if labels and any((path / name).is_file() for name in CLASSES) else None
