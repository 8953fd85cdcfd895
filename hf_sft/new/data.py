"""Which loader reads a file, a folder or a data set of the Hub, and its ``data`` block."""

import gzip
import math
import os
import re
from pathlib import Path
from typing import Any

from hf_sft.errors import DataError, listing
from hf_sft.images import ENDINGS as IMAGES
from hf_sft.json_text import parsed
from hf_sft.new.image_data import TASKS as IMAGE_TASKS
from hf_sft.new.image_data import annotations_block, image_block
from hf_sft.new.language_files import by_language
from hf_sft.resources import PACKAGE, ResourceError, locator, package_path
from hf_sft.table_files import ENDINGS as TABLES
from hf_sft.table_files import ending

SPLITS = {  # words in a file's name; those of datasets.load_dataset
    "train": ("training", "train", "trn"),
    "validation": ("validation", "valid", "val", "development", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
FORMATS = {  # task -> loader with one file per split, and the endings of its files
    "question-answering": ("squad", ("json",)),
    "token-classification": ("conll", ("conll", "conllu", "iob", "iob2", "bio", "annotated")),
    "text-generation": ("text-files", ("txt",)),
    "fill-mask": ("text-files", ("txt",)),
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHARD = re.compile(r"-\d{5}-of-\d{5}")
LANGUAGE = re.compile(r"(?!txt|csv|tsv|md|py|gz)[a-z]{2,3}(_[a-z]+)?")
HIDDEN = (".", "__")
ROWS = 1000  # of a csv, to see where its labels are
LEAST_SIDE = 8  # pixels of an image in a csv


def data_block(task: str, given: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The block that reads what ``given`` names, and a name for the data.

    Args:
        task: its ``type``; a folder may be read in several ways.
        given: a path, ``package:module/path``, or the id of a data set on the Hub.
        folder: the recipe's, where its relative paths start.

    Raises:
        DataError: nothing is there, or no loader knows what is.
    """
    try:
        path = package_path(given) if given.startswith(PACKAGE) else locator(Path.cwd())(given)
    except ResourceError as error:
        if not HUB_ID.fullmatch(given) or given.startswith(".") or ending(Path(given)) in TABLES:
            raise DataError(f"DATA: {error} A data set of the Hub is written user/name.") from error
        return {"type": "hub", "path": given}, given.rpartition("/")[2]
    written = _Written(given, path, folder.resolve())
    if path.is_file():
        named = split_of(path) or path.stem.lower() == "data"
        return _of_file(task, path, written), path.parent.name if named else path.name.partition(
            "."
        )[0]
    return _of_folder(task, path, written), path.name


class _Written:
    """How the recipe spells a path: as given in a package or below HF_SFT_DATA, else relative."""

    def __init__(self, given: str, root: Path, folder: Path):
        self.given, self.root, self.folder = given, root, folder

    def __call__(self, path: Path) -> str:
        if self.given.startswith(PACKAGE):
            inside = path.relative_to(self.root).as_posix()
            return self.given if inside == "." else f"{self.given.rstrip('/')}/{inside}"
        shared = Path(os.environ.get("HF_SFT_DATA") or self.folder).resolve()
        if path.is_relative_to(shared) and not path.is_relative_to(self.folder):
            return path.relative_to(shared).as_posix()
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive
            return str(path)


def split_of(path: Path) -> str | None:
    """The split that a file's name tells: a word of it, else how the name begins or ends."""
    stem = path.name.lower().partition(".gz")[0]
    words = re.split(r"[^a-z]+", stem)
    for split, names in SPLITS.items():
        if any(name in words for name in names):
            return split
    stem = stem.partition(".")[0]
    for split, names in SPLITS.items():
        if any(stem.startswith(name) or stem.endswith(name) for name in names):
            return split
    return None


def _of_file(task: str, path: Path, written: _Written) -> dict[str, Any]:
    if task == "image-classification" and ending(path) == "csv" and (form := _pixels(path)):
        return {"type": "pixel-table", "train": written(path)} | form
    if block := annotations_block(task, path, written, split_of):
        return block
    if (kind := _loader_of(task, path)) is None:
        raise DataError(
            f"DATA: '{path.name}' is no data that {task} reads. Choices by ending: "
            f"{listing(_endings(task))}; or a folder, or a data set of the Hub as user/name."
        )
    return {"type": kind, "path" if kind == "clinc" else "train": written(path)}


def _loader_of(task: str, path: Path) -> str | None:
    """The loader whose files look like this one."""
    kind, endings = FORMATS.get(task, ("", ()))
    if ending(path) in endings:
        return kind
    if ending(path) not in TABLES:
        return None
    return "clinc" if ending(path) == "json" and _is_clinc(path) else "table"


def _endings(task: str) -> list[str]:
    return [*FORMATS.get(task, ("", ()))[1], *TABLES]


def _is_clinc(path: Path) -> bool:
    """Whether it is ``{split: [[text, label], …]}``."""
    try:
        found = parsed(path.read_text("utf-8-sig"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(found, dict)
        and "train" in found
        and all(isinstance(rows, list) for rows in found.values())
        and all(isinstance(row, list) and len(row) == 2 for row in found["train"])
    )


def _pixels(path: Path) -> dict[str, Any] | None:
    """How the rows of pixels lie, where a csv holds square images; None where it does not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
        rows = [line.strip().split(",") for _, line in zip(range(ROWS), file, strict=False)]
    side = math.isqrt(len(rows[0]) - 1) if rows else 0
    if side < LEAST_SIDE or side * side != len(rows[0]) - 1:
        return None
    named = not rows[0][1].strip().isdecimal()
    first, last = ({row[place] for row in rows[named:]} for place in (0, -1))
    front = len(last) == 1 < len(first)  # the corner of most images is blank, labels differ
    form = {"height": side, "width": side, "label_position": "first" if front else "last"}
    return form | {"header": named}


def _of_folder(task: str, path: Path, written: _Written) -> dict[str, Any]:
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _visible(file, path)]
    if task in IMAGE_TASKS and any(file.suffix.lower() in IMAGES for file in files):
        return image_block(task, path, files, written, split_of)
    if task == "translation" and (pairs := _parallel(files)):
        return {"type": "parallel-text"} | {
            split: {side: written(file) for side, file in pair.items()}
            for split, pair in pairs.items()
        }
    top = {file: _loader_of(task, file) for file in files if file.parent == path}
    special = FORMATS.get(task, ("",))[0]
    for kind in (special, "clinc", "table"):
        here = [file for file, found in top.items() if kind and found == kind]
        if any(SHARD.search(file.name) for file in here):
            break
        if not here:
            continue
        if kind == "clinc":
            return {"type": kind, "path": written(_only(here, path))}
        if kind == "text-files" and not any(split_of(file) for file in here):
            return {"type": kind, "train": written(path)}  # all of them
        if kind == "squad" and (languages := by_language(here, split_of)):
            return {"type": kind} | {
                split: {language: written(file) for language, file in each.items()}
                for split, each in languages.items()
            }
        return {"type": kind} | {s: written(file) for s, file in _by_split(here, path).items()}
    if any(ending(file) in (*TABLES, "arrow") for file in files):
        return {"type": "hub", "path": written(path)}  # parquet shards, a folder per split, …
    raise DataError(
        f"DATA: folder '{path.name}' holds nothing that {task} reads, but: "
        f"{listing(file.relative_to(path).as_posix() for file in files) or 'no files'}. Wanted: "
        f"train, validation and test files ({listing(_endings(task))}), or images in a folder for "
        "each class."
    )


def _parallel(files: list[Path]) -> dict[str, dict[str, Path]]:
    """Split -> its source and target file, where names end in two languages (train.en, train.de).

    The source is English where one of them is, else the first by the alphabet.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        if LANGUAGE.fullmatch(ending(file)) and (split := split_of(file)):
            found.setdefault(split, {})[ending(file)] = file
    pairs = {split: pair for split, pair in found.items() if len(pair) == 2}
    return {
        split: dict(
            zip(("source", "target"), sorted(pair.values(), key=_english_first), strict=True)
        )
        for split, pair in pairs.items()
        if "train" in pairs
    }


def _english_first(file: Path) -> tuple[bool, str]:
    return ending(file) != "en", ending(file)


def _visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(HIDDEN) for part in file.relative_to(folder).parts)


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise DataError(
            f"DATA: folder '{folder.name}' holds several data sets: "
            f"{listing(file.name for file in files)}. Name one of them as DATA."
        )
    return files[0]


def _by_split(files: list[Path], folder: Path) -> dict[str, Path]:
    """Split -> file, train first; a single file is for training whatever its name."""
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in files:
        if split := split_of(file):
            found[split].append(file)
    if len(files) == 1:
        return {"train": files[0]}
    problems = [
        f"two files for {split}: {listing(file.name for file in here)}"
        for split, here in found.items()
        if len(here) > 1
    ]
    if not found["train"]:
        problems.append(f"which is for training? {listing(file.name for file in files)}")
    if problems:
        raise DataError(
            f"DATA: folder '{folder.name}': {'; '.join(problems)}. Name the file to train on as "
            "DATA, and others with data.validation=FILE data.test=FILE."
        )
    return {split: here[0] for split, here in found.items() if here}
