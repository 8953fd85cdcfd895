"""An annotation of Pascal VOC, read safely: no document type, so that no entity expands."""

import math
import os
from pathlib import Path
from xml.etree import ElementTree

from hf_sft.errors import DataError, listing
from hf_sft.images import ENDINGS
from hf_sft.loaders.objects import Annotated, Thing, few, inside

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _NoDoctype(ElementTree.TreeBuilder):
    """Stops where a document type begins: entities that blow up are declared in it."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it has a DOCTYPE, which may hold entities; remove that line")


def read_voc(
    file: Path, images: Path, one_based: bool, difficult: bool
) -> tuple[Annotated, tuple[int, int], str]:
    """(the image with its objects, without its size; the size the xml states; the xml's name).

    Args:
        file: the xml.
        images: the folder of its image.
        one_based: corners count pixels from 1 and include the last: x = xmin - 1, width =
            xmax - xmin + 1. Otherwise they are edges from 0 on: x = xmin, width = xmax - xmin.
        difficult: keep objects that are marked so.

    Raises:
        DataError: no such xml, no image, or objects that cannot be read; all of the file.
    """
    root = _root(file)
    image = image_beside(images, file.stem) or _named_image(root, file, images)
    things, bad = [], []
    for number, node in enumerate(root.findall("object"), 1):
        try:
            thing = _thing(node, one_based)
        except ValueError as error:
            bad.append(f"object {number}: {error}")
            continue
        if difficult or not thing.difficult:
            things.append(thing)
    if bad:
        raise DataError("\n".join(few(f"'{file.name}'", bad)))
    size = tuple(_side(root, f"size/{key}") for key in ("width", "height"))
    return Annotated(image, image.name, 0, 0, things), size, file.name


def _root(file: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        root = ElementTree.fromstring(file.read_bytes(), parser)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise DataError(
            f"'{file.name}' cannot be read as xml: {error}. Get or write it anew, whole; or remove "
            "it, and its image from the lists."
        ) from error
    if root.tag != "annotation":
        raise DataError(
            f"'{file.name}' begins with <{root.tag}>; VOC's <annotation> is wanted. Remove it, or "
            "name the folder of VOC's xml with data.annotations."
        )
    return root


def image_beside(folder: Path, stem: str) -> Path | None:
    """The image of that name, with any ending that can be read."""
    for ending in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", *sorted(ENDINGS)):
        if os.path.isfile(path := folder / f"{stem}{ending}"):
            return path
    return None


def _named_image(root: ElementTree.Element, file: Path, images: Path) -> Path:
    """What the xml calls its image, where none has the xml's own name."""
    name = (root.findtext("filename") or "").strip()
    if name and (path := inside(images, name)) is None:
        raise DataError(
            f"'{file.name}' names the image {name!r}; wanted a path below '{images.name}', "
            "without '..'. Correct it."
        )
    if not name or not os.path.isfile(path):
        raise DataError(
            f"'{file.name}' has no image: neither '{file.stem}.jpg' (or .png, …) nor {name!r} "
            f"lies in '{images.name}'. Add it, remove the xml, or correct data.images."
        )
    return path


def _thing(node: ElementTree.Element, one_based: bool) -> Thing:
    """One <object>.

    Raises:
        ValueError: what is missing or no number, as the rest of a sentence.
    """
    name = (node.findtext("name") or "").strip()
    if not name:
        raise ValueError("it has no <name>. Name its class, or remove it.")
    if (box := node.find("bndbox")) is None:
        found = listing(child.tag for child in node)
        raise ValueError(f"{name} has no <bndbox>, but: {found}. Add it, or remove the object.")
    left, upper, right, lower = (_number(box, key, name) for key in CORNERS)
    if one_based:
        if min(left, upper) < 1:
            raise ValueError(
                f"{name} begins at {left:g}, {upper:g}; VOC counts pixels from 1. If these files "
                "count from 0, set data.one_based: false; else correct it."
            )
        left, upper = left - 1, upper - 1
    width, height = right - left, lower - upper
    hard = (node.findtext("difficult") or "0").strip() not in ("0", "false", "Unspecified")
    return Thing((left, upper, width, height), name, width * height, difficult=hard)


def _number(box: ElementTree.Element, key: str, name: str) -> float:
    text = (box.findtext(key) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} has <{key}> {text!r:.40}; wanted a number of pixels. Correct it.")
    return value


def _side(root: ElementTree.Element, key: str) -> int:
    """Pixels, as the xml states them; 0 where it does not."""
    try:
        return int(float(root.findtext(key) or 0))
    except (ValueError, OverflowError):
        return 0
