"""Image files before they are used: their size from the header, and what is wrong with them."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import EpsImagePlugin
from PIL import Image as Picture
from PIL.ExifTags import Base

PROGRAMS = {"EPS"}  # PostScript: not pictures but programs, which Ghostscript would have to run
EpsImagePlugin.gs_binary = False  # it is never started, whatever a file calls itself
ENDINGS = {
    end
    for end, kind in Picture.registered_extensions().items()
    if kind in Picture.OPEN and kind not in PROGRAMS
}
TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height
CHECKED_BY_SUM = {"PNG"}  # formats whose ``verify`` compares a checksum of all that is stored
AT_ONCE = 256  # images that wait in memory while some are looked at

Undecoded = dict[str, Any]  # {"path": str | None, "bytes": bytes | None}, as datasets keeps it
Result = TypeVar("Result")


class BrokenImage(ValueError):
    """An image that cannot be used; the message names it and the remedy."""


def most_pixels() -> int | None:
    """Pixels that an image may have: Pillow's ``Image.MAX_IMAGE_PIXELS`` (89 million; 256 MB as
    RGB), above which it warns of a decompression bomb; None for no limit."""
    return Picture.MAX_IMAGE_PIXELS


def size_of(image: Undecoded | str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the header, as ``datasets`` will decode it: EXIF-turned.

    Raises:
        BrokenImage: no file, no image, or one of more than ``most_pixels()``.
    """
    return _opened(image, _size)


def problem_of(image: Undecoded | str | Path | None) -> str | None:
    """Why an image cannot be decoded, with its name and a remedy; None for a good one.

    All of the file is read, with as little arithmetic as its format allows: a JPEG is decoded at
    an eighth of its side without colours (a third of the time), a PNG's checksums are compared (a
    seventieth); anything else is decoded. A PNG that was written wrong but sums up passes.
    """
    if image is None:
        return "there is no image."
    try:
        return _opened(image, _read_through)
    except BrokenImage as error:
        return str(error)


def size_or_problem(image: Undecoded | str | Path) -> tuple[int, int] | str:
    """``size_of``, or what is wrong, as a sentence."""
    try:
        return size_of(image)
    except BrokenImage as error:
        return str(error)


def each(look: Callable[[Any], Result], images: Iterable[Any]) -> Iterator[Result]:
    """``look`` at every image in parallel threads; results in order, few images in memory."""
    images = iter(images)
    with ThreadPoolExecutor() as pool:
        while part := list(islice(images, AT_ONCE)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Picture.DecompressionBombWarning)  # a problem here
                found = list(pool.map(look, part))
            yield from found


def _opened(image: Undecoded | str | Path, use: Callable[[Any], Result]) -> Result:
    """``use`` of the opened picture, once it is known to be of a size that fits."""
    if isinstance(image, str | Path):
        image = {"path": str(image), "bytes": None}
    name = image["path"] or "(bytes in the data)"
    if image["bytes"] is None and image["path"] and not os.path.isfile(image["path"]):
        raise BrokenImage(f"'{name}' does not exist. Correct the path, or remove the row.")
    source = image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
    try:
        with Picture.open(source) as picture:
            _refuse_programs(name, picture)
            _refuse_huge(name, picture)
            return use(picture)
    except BrokenImage:
        raise
    except Picture.DecompressionBombError as error:
        raise BrokenImage(f"'{name}' is too large ({error}). Make it smaller.") from error
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them into
        raise BrokenImage(f"'{name}' cannot be decoded ({error}). Replace or remove it.") from error


def _refuse_programs(name: str, picture: Picture.Image) -> None:
    if picture.format in PROGRAMS:
        raise BrokenImage(
            f"'{name}' is PostScript ({picture.format}), a program that draws. Save it as PNG."
        )


def _refuse_huge(name: str, picture: Picture.Image) -> None:
    width, height = picture.size
    if (most := most_pixels()) and width * height > most:
        raise BrokenImage(
            f"'{name}' is too large: {width} × {height} pixels, at most {most:,} are taken. Make "
            "it smaller or cut it into parts."
        )


def _size(picture: Picture.Image) -> tuple[int, int]:
    exif = Picture.Image.getexif(picture)  # a PNG's own would decode it, to look behind the pixels
    turned = exif.get(Base.Orientation) in TURNED
    if turned and picture.format == "TIFF":  # turned by its reader, in some versions when decoded
        picture.load()
        return picture.size
    width, height = picture.size
    return (height, width) if turned else (width, height)


def _read_through(picture: Picture.Image) -> None:
    if picture.format in CHECKED_BY_SUM:
        picture.verify()
        return
    picture.draft("L", (1, 1))  # of JPEG alone
    picture.load()
