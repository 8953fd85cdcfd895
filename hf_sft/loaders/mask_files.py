"""Which mask belongs to which image: files of one name in two folders."""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from hf_sft.errors import DataError, listing, nearest
from hf_sft.images import ENDINGS

SPLITS = {  # folder -> split; the second names are ADE20K's, Cityscapes' and Pascal's
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
LOSSY = {".jpg", ".jpeg", ".jpe", ".jfif"}
MOST = 5


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: Path
    mask: Path


def pairs(folder: Path, images: str, masks: str, suffix: str) -> dict[str, list[Pair]]:
    """Split -> its images with their masks, sorted; ``train`` alone where no folder is a split.

    Raises:
        DataError: no such folders, images without a mask, masks without an image, or JPEG masks.
    """
    found, problems = {}, []
    for split, (pictures, drawn) in _places(folder, images, masks).items():
        files, wrong = _by_stem(pictures, "", split)
        others, more = _by_stem(drawn, suffix, split)
        problems += [*wrong, *more, *_lossy(others, split)]
        lone = sorted(files.keys() - others.keys())
        idle = sorted(others.keys() - files.keys())
        if lone:
            want = f"{lone[0]}{suffix}.png"
            near = nearest(lone[0] + suffix, [f"{name}{suffix}" for name in idle])
            problems.append(
                f"data.{split}: {len(lone)} of {len(files)} images have no mask in "
                f"'{drawn.relative_to(folder)}': {listing(lone)}. Add '{want}', …, or remove the "
                f"images; what follows the image's name in a mask's is data.suffix.{near}"
            )
        if idle:
            problems.append(
                f"data.{split}: {len(idle)} masks in '{drawn.relative_to(folder)}' have no image: "
                f"{listing(idle)}. Add the images, or remove the masks."
            )
        found[split] = [Pair(files[name], others[name]) for name in sorted(files) if name in others]
    if problems:
        raise DataError("\n".join(problems))
    return found


def _places(folder: Path, images: str, masks: str) -> dict[str, tuple[Path, Path]]:
    """Split -> its folder of images and its folder of masks."""
    above = _of_splits(folder, {name: Path(name, images) for name in SPLITS})
    below = _of_splits(folder, {name: Path(images, name) for name in SPLITS})
    above = {split: (place, place.parent / masks) for split, place in above.items()}
    below = {split: (place, folder / masks / place.name) for split, place in below.items()}
    found = above or below
    if not found and os.path.isdir(folder / images):
        found = {"train": (folder / images, folder / masks)}
    if not found:
        there = listing(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise DataError(
            f"data.path: '{folder.name}' has no folder {images!r}, nor one in a folder of a split "
            f"({listing(SPLITS)}); it holds {there}. Name the folders with data.images and "
            "data.masks."
        )
    missing = [place for _, place in found.values() if not os.path.isdir(place)]
    if missing:
        raise DataError(
            "data.masks: there is no folder "
            f"{listing(repr(str(place.relative_to(folder))) for place in missing)} in "
            f"'{folder.name}'. Add it, or name it with data.masks."
        )
    return found


def _of_splits(folder: Path, places: dict[str, Path]) -> dict[str, Path]:
    """Split -> the one folder of images that is named for it; ``places``: by the name of each."""
    found: dict[str, list[Path]] = defaultdict(list)
    for name, place in places.items():
        if (folder / place).is_dir():
            found[SPLITS[name]].append(folder / place)
    for split, several in found.items():
        if len(several) > 1:
            shown = listing(repr(place.relative_to(folder).as_posix()) for place in several)
            raise DataError(
                f"data.path: '{folder.name}' has several folders of images for {split}: {shown}. "
                "Keep one of them, or put their images together."
            )
    return {split: places[0] for split, places in found.items()}


def _by_stem(place: Path, suffix: str, split: str) -> tuple[dict[str, Path], list[str]]:
    """Name below ``place`` without ending and suffix -> file; what is wrong with some."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(Path(top) / name for top, _, names in os.walk(place) for name in names):
        hidden = any(part.startswith((".", "__")) for part in path.relative_to(place).parts)
        if hidden or path.suffix.lower() not in ENDINGS or not path.stem.endswith(suffix):
            continue
        stem = path.relative_to(place).with_suffix("").as_posix()
        found[stem.removesuffix(suffix)].append(path)
    twice = {name: files for name, files in found.items() if len(files) > 1}
    problems = [
        f"data.{split}: {name!r} is the name of {listing(file.name for file in files)} in "
        f"'{place.name}'. Keep one of them."
        for name, files in list(twice.items())[:MOST]
    ]
    if not found:
        ending = f" whose names end in {suffix!r}" if suffix else ""
        problems.append(f"data.{split}: no pictures{ending} in '{place}'. Correct data.path.")
    return {name: files[0] for name, files in found.items()}, problems


def _lossy(masks: dict[str, Path], split: str) -> list[str]:
    """Masks whose numbers JPEG has changed."""
    wrong = [path.name for path in masks.values() if path.suffix.lower() in LOSSY]
    if not wrong:
        return []
    return [
        f"data.{split}: {len(wrong)} masks are JPEG ({listing(wrong)}), which changes the numbers "
        "of pixels. Save masks as PNG, from the originals."
    ]
