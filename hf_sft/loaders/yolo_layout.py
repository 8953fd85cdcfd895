"""Where the images and classes of a YOLO data set are: its data.yaml, or its folders."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_sft.bounded import bounded
from hf_sft.errors import DataError, listing
from hf_sft.images import ENDINGS
from hf_sft.loaders.objects import few, inside
from hf_sft.loaders.text_files import read_text

SPLITS = {  # split -> keys of data.yaml, names of folders
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = ("classes.txt", "obj.names", "_darknet.labels")
UP = re.compile(r"^(\.\./)+")


@dataclass(frozen=True)
class Layout:
    """``root``: what all paths are below; ``names``: of the classes in order; ``splits``: the
    folders, lists or files of images of each."""

    root: Path
    names: list[str]
    splits: dict[str, list[Path]]


def layout(path: Path) -> Layout:
    """What a data.yaml says, or what the folders of a data set without one are called.

    Raises:
        DataError: no classes, no images, or a place outside the data's folder.
    """
    if path.is_file():
        return _of_yaml(path)
    for name in YAMLS:
        if (path / name).is_file():
            return _of_yaml(path / name)
    for name in CLASSES:
        if (file := path / name).is_file():
            lines = read_text(file, "data.path").split("\n")
            return Layout(path, _names(lines_of(lines), name), _folders(path))
    raise DataError(
        f"data.path: folder '{path.name}' has neither data.yaml nor classes.txt, but: "
        f"{listing(sorted(entry.name for entry in path.iterdir()))}. Add the classes, one a line."
    )


def lines_of(lines: list[str]) -> list[str]:
    """Lines without the blank ones at the end: a class may not be left out between others."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


def _of_yaml(file: Path) -> Layout:
    try:
        found = bounded(yaml.safe_load(read_text(file, "data.path")))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"data.path: '{file.name}' cannot be read as yaml: {error}") from error
    if not isinstance(found, dict) or "names" not in found:
        raise DataError(
            f"data.path: '{file.name}' has no 'names'. Wanted: names: [cat, dog], train: "
            "images/train, val: images/val."
        )
    names = _names(found["names"], file.name)
    if isinstance(count := found.get("nc"), int) and count != len(names):
        raise DataError(
            f"data.path: '{file.name}' says nc: {count}, but names {len(names)} classes. Correct "
            "the one or the other."
        )
    root = _root(file, found.get("path"))
    splits, problems = {}, []
    for split, keys in SPLITS.items():
        key = next((key for key in keys if found.get(key)), None)
        if key is not None:
            splits[split], bad = _places(root, found[key])
            problems += [f"data.path: '{file.name}' {key}: {line}" for line in bad]
    if problems:
        raise DataError("\n".join(problems))
    return Layout(root, names, splits or _folders(root))


def _root(file: Path, path: Any) -> Path:
    """The folder that the yaml's paths start from: its ``path`` below its own folder."""
    if path is None:
        return file.parent
    if (root := inside(file.parent, path)) is None or not os.path.isdir(root):
        raise DataError(
            f"data.path: '{file.name}' says path: {path!r}, which is no folder below the yaml's "
            "own. Remove that line, and give train and val relative to the yaml."
        )
    return root


def _places(root: Path, given: Any) -> tuple[list[Path], list[str]]:
    """The places of one split, and what is wrong with some.

    ``../train/images``, as some tools write of what lies beside the yaml, is taken for that.
    """
    places, problems = [], []
    for name in given if isinstance(given, list) else [given]:
        near = UP.sub("", name) if isinstance(name, str) else name
        place = inside(root, near)
        if place is None:
            problems.append(f"{name!r} leads out of the data's folder. Give it relative to that.")
        elif not os.path.exists(place):
            problems.append(f"{name!r} does not exist in '{root.name}'. Correct or remove it.")
        else:
            places.append(place)
    return places, problems


def _names(given: Any, file: str) -> list[str]:
    """The classes by their numbers, from a list or {number: name}."""
    if isinstance(given, dict):
        given = {int(k) if str(k).isdecimal() else k: name for k, name in given.items()}
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise DataError(
                f"data.path: '{file}' names: the numbers of the classes are {listing(given)}; "
                f"wanted 0 to {len(given) - 1}. Number them so, in the labels too."
            )
        given = [given[number] for number in range(len(given))]
    if not isinstance(given, list) or not given:
        raise DataError(f"data.path: '{file}' has no list of names. Wanted: names: [cat, dog].")
    names = [str(name).strip() for name in given]
    if "" in names or len(set(names)) < len(names):
        twice = {name for name in names if names.count(name) > 1}
        raise DataError(
            f"data.path: '{file}' names: every class needs a name of its own; blank or repeated: "
            f"{listing(sorted(map(repr, twice or {''})))}."
        )
    return names


def _folders(root: Path) -> dict[str, list[Path]]:
    """Splits by the names of folders: images/train or train/images; else all of them are train."""
    splits = {}
    for split, names in SPLITS.items():
        for name in names:
            for place in (root / "images" / name, root / name / "images"):
                if split not in splits and place.is_dir():
                    splits[split] = [place]
    return splits or {"train": [root / "images" if (root / "images").is_dir() else root]}


def images_of(root: Path, split: str, places: list[Path]) -> list[Path]:
    """The image files of a split: of folders by name, of lists in their order.

    Raises:
        DataError: a list that names a file outside the data's folder; no image at all.
    """
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += sorted(
                file
                for file in place.rglob("*")
                if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
            )
        else:
            images += _listed(root, split, place)
    if not images:
        names = listing(place.relative_to(root).as_posix() for place in places)
        raise DataError(f"data.{split}: no images in {names}. Correct the path in the yaml.")
    if len(set(images)) < len(images):
        raise DataError(f"data.{split}: an image is listed more than once. List each once.")
    return images


def _listed(root: Path, split: str, file: Path) -> list[Path]:
    images, bad = [], []
    for number, line in enumerate(read_text(file, f"data.{split}").split("\n"), 1):
        if not (name := line.strip()):
            continue
        found = [inside(folder, name) for folder in (root, file.parent)]
        if None in found:
            bad.append(f"line {number}: {name!r} leads out of the data's folder.")
            continue
        images.append(next((path for path in found if os.path.isfile(path)), found[0]))
    if bad:
        raise DataError("\n".join(few(f"data.{split}: '{file.name}'", bad)))
    return images
