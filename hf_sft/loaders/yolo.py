"""YOLO: a data.yaml, folders of images, and a text file of boxes for every image."""

import logging
from pathlib import Path
from typing import Literal

from hf_sft.errors import DataError, listing
from hf_sft.loaders.boxes import BoxLoader
from hf_sft.loaders.objects import Annotated, Parts, few, refuse, sizes
from hf_sft.loaders.yolo_files import label_file, read_labels
from hf_sft.loaders.yolo_layout import Layout, images_of, layout
from hf_sft.resources import Locate

log = logging.getLogger(__name__)


class Yolo(BoxLoader):
    """``path``: a data.yaml (``names``, ``train``, ``val``, ``test``), or the folder that holds it.

    Without a yaml the folder has ``classes.txt``, and ``images`` and ``labels`` in either order
    with train, val and test. The labels of an image are in the txt of its name, in ``labels``
    where the image is in ``images``: lines of a class number and centre x, centre y, width and
    height as shares of the image, or the corners of a polygon. An image without a txt has no
    objects. Source of the format: https://docs.ultralytics.com/datasets/detect/

    Keys:
        path: data.yaml, or the folder with it or with classes.txt.

    Example: {type: yolo, path: traffic/data.yaml}
    """

    type: Literal["yolo"] = "yolo"
    path: str

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def annotated(self, locate: Locate) -> tuple[Parts, list[str]]:
        found = layout(locate(self.path))
        parts: Parts = {}
        problems = []
        for split, places in found.splits.items():
            try:
                parts[split] = _images(found, split, places)
            except DataError as error:
                problems.append(str(error))
        refuse(problems)
        if not any(image.things for images in parts.values() for image in images):
            raise DataError(
                f"data.path: no image of {self.path!r} has an object. Its labels are looked for in "
                "the folder 'labels' beside 'images', or beside the image, as NAME.txt."
            )
        return parts, found.names


def _images(found: Layout, split: str, places: list[Path]) -> list[Annotated]:
    """The images of one split, with sizes and objects."""
    images = images_of(found.root, split, places)
    measured, bad = sizes(images)
    problems = few(f"data.{split}:", bad)
    parts, wrong, bare = [], [], []
    for path, (width, height) in zip(images, measured, strict=True):
        things, lines = [], []
        if (file := label_file(path, found.root)) is not None:
            things, lines = read_labels(file, found.names, width, height)
        else:
            bare.append(path.name)
        wrong += [f"'{file.relative_to(found.root).as_posix()}' {line}" for line in lines]
        name = path.relative_to(found.root).as_posix()
        parts.append(Annotated(path, name, width, height, things))
    refuse(problems + few(f"data.{split}:", wrong))
    if bare:
        log.warning(
            "data.%s: %d of %d images have no txt of labels (%s) and count as images without "
            "objects. If that is wrong, add the files; an empty one says the same on purpose.",
            *(split, len(bare), len(images), listing(bare, 3)),
        )
    return parts
