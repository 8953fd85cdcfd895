"""Images cut to the boxes of their objects: image classification from detection data."""

import io
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture
from PIL import ImageOps

from hf_sft.images import each
from hf_sft.loaders.objects import Annotated, Parts, Thing, few, refuse

SOURCE = "source"  # the column that names the image a crop was cut from
SQUEEZE = 1  # of PNG: quick; the crops are decoded often and stored once
PER_PIXEL = 2  # bytes of a photo's PNG, at most and about: 1.2 in BCCD
MUCH = 500e6  # bytes of crops that are told before they are cut

log = logging.getLogger(__name__)


def as_crops(parts: Parts, names: Sequence[str], margin: float) -> DatasetDict:
    """Every object as an image of its own; regions of crowds are left out.

    Every image is decoded once, in parallel; crops are kept in memory as PNG, and how much that
    will be is told where it is MUCH.

    Raises:
        DataError: images that cannot be decoded, boxes of no pixel inside their image.
    """
    features = Features(
        {"image": Image(), "label": ClassLabel(names=list(names)), SOURCE: Value("string")}
    )
    _tell_size(parts, margin)
    data, problems = DatasetDict(), []
    for split, images in parts.items():
        columns = {"image": [], "label": [], SOURCE: []}
        wrong = []
        for image, cut in zip(images, each(partial(crops_of, margin=margin), images), strict=True):
            if isinstance(cut, str):
                wrong.append(cut)
                continue
            columns["image"] += [{"bytes": raw, "path": None} for raw in cut]
            columns["label"] += [thing.category for thing in singles(image)]
            columns[SOURCE] += [source_of(image)] * len(cut)
        problems += few(f"data.{split}:", wrong)
        if not wrong:
            data[split] = Dataset.from_dict(columns, features=features)
    refuse(problems)
    return data


def _tell_size(parts: Parts, margin: float) -> None:
    """Log the memory that the crops will take, where it is MUCH."""
    count = pixels = 0
    for images in parts.values():
        for image in images:
            for thing in singles(image):
                left, upper, right, lower = edges(thing.box, image.width, image.height, margin)
                pixels += max(0, right - left) * max(0, lower - upper)
                count += 1
    if pixels * PER_PIXEL > MUCH:
        log.warning(
            "data.crops: %s objects of %.0f megapixels together are kept in memory as PNG, up to "
            "about %.1f GB, and twice that while they are cut. If that is too much, cut them into "
            "files in a folder for each class, and read those with image-folder.",
            *(f"{count:,}", pixels / 1e6, pixels * PER_PIXEL / 1e9),
        )


def source_of(image: Annotated) -> str:
    """The image's name with its folder: train/1.jpg and test/1.jpg are two photos."""
    return image.name if "/" in image.name else f"{image.path.parent.name}/{image.name}"


def singles(image: Annotated) -> list[Thing]:
    """The objects that are one thing, not a crowd."""
    return [thing for thing in image.things if not thing.crowd]


def crops_of(image: Annotated, margin: float) -> list[bytes] | str:
    """Each object of an image as a PNG in the data's order, or what is wrong with the image."""
    things = singles(image)
    if not things:
        return []
    places = [edges(thing.box, image.width, image.height, margin) for thing in things]
    for thing, (left, upper, right, lower) in zip(things, places, strict=True):
        if left >= right or upper >= lower:
            return (
                f"'{image.name}' has a box without a pixel inside the image: {thing.category} "
                f"{[round(side, 1) for side in thing.box]} of {image.width} × {image.height}. "
                "Correct or remove it."
            )
    try:
        picture = _decoded(image.path)
        return [_png(picture.crop(place)) for place in places]
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them into
        return f"'{image.name}' cannot be decoded ({error}). Replace or remove it."


def edges(
    box: tuple[float, float, float, float], width: int, height: int, margin: float
) -> tuple[int, int, int, int]:
    """Left, upper, right, lower pixel edges of a box with its margin, inside the image."""
    x, y, w, h = box
    left, right = round(x - margin * w), round(x + w + margin * w)
    upper, lower = round(y - margin * h), round(y + h + margin * h)
    return max(0, left), max(0, upper), min(width, right), min(height, lower)


def _decoded(path: Path) -> Picture.Image:
    with Picture.open(path) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def _png(picture: Picture.Image) -> bytes:
    picture.save(buffer := io.BytesIO(), "PNG", compress_level=SQUEEZE)
    return buffer.getvalue()
