"""Which loader reads a folder of images, and which tasks the data in it are for."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_sft.errors import DataError, UserError, listing
from hf_sft.images import ENDINGS
from hf_sft.new.box_data import (
    Split,
    Written,
    by_split,
    coco_block,
    is_coco,
    is_voc,
    is_yolo,
    voc_block,
    yolo_place,
)
from hf_sft.new.mask_data import mask_block
from hf_sft.table_files import ENDINGS as TABLES
from hf_sft.table_files import ending, read_table

BOXES, MASKS, FOLDER, TABLE = "boxes", "masks", "class folders", "a table of images"
TASKS = {  # task -> the forms it reads, the best first
    "image-classification": (BOXES, TABLE, FOLDER),
    "object-detection": (BOXES,),
    "image-segmentation": (MASKS, BOXES),
    "masked-image-modeling": (MASKS, FOLDER, BOXES, TABLE),
}


@dataclass(frozen=True)
class Form:
    """What a folder holds: a word for it, and the block that reads it."""

    kind: str
    block: dict[str, Any]


def image_block(
    task: str, path: Path, files: list[Path], written: Written, split_of: Split
) -> dict[str, Any]:
    """The ``data`` block of a folder that holds images.

    Args:
        task: one of ``TASKS``.
        path: the folder.
        files: all that is visible in it.
        written: how the recipe spells a path.
        split_of: the split that a file's name tells.

    Raises:
        DataError: the folder is for other tasks; they are named.
    """
    found = list(_forms(path, files, written, split_of))
    for wanted in TASKS[task]:
        for form in found:
            if form.kind == wanted:
                return _for_task(task, path, form, written)
    others = [t for t, kinds in TASKS.items() if any(form.kind in kinds for form in found)]
    raise DataError(
        f"DATA: folder '{path.name}' holds {listing(form.kind for form in found) or 'no images'}, "
        f"which {task} does not read. It reads: {listing(TASKS[task])}."
        + (f" Tasks for this folder: {listing(others)}." if others else "")
    )


def annotations_block(
    task: str, file: Path, written: Written, split_of: Split
) -> dict[str, Any] | None:
    """The block of a COCO json or a data.yaml that is given itself; None for any other file."""
    if task not in TASKS:
        return None
    block = None
    if ending(file) == "json" and is_coco(file):
        files = [place for place in sorted(file.parent.parent.rglob("*")) if place.is_file()]
        block = coco_block({"train": file}, files, written)
    elif is_yolo(file):
        block = {"type": "yolo", "path": written(file)}
    if block is None:
        return None
    if BOXES not in TASKS[task]:
        raise DataError(f"DATA: '{file.name}' holds boxes, which {task} does not read.")
    return _for_task(task, file.parent, Form(BOXES, block), written)


def _for_task(task: str, path: Path, form: Form, written: Written) -> dict[str, Any]:
    if form.kind == BOXES and task == "image-classification":
        return form.block | {"crops": True}
    if task == "masked-image-modeling" and form.kind != TABLE:
        folder = form.block.get("images", "images") if form.kind == MASKS else None
        place = path / folder if folder and (path / folder).is_dir() else path
        return {"type": "image-folder", "path": written(place), "labelled": False}
    return form.block


def _forms(path: Path, files: list[Path], written: Written, split_of: Split) -> Iterable[Form]:
    """Everything that the files could be, what says most first."""
    images = [file for file in files if file.suffix.lower() in ENDINGS]
    xml = [file for file in files if ending(file) == "xml" and is_voc(file)]
    json_files = [file for file in files if ending(file) == "json" and is_coco(file)]
    if json_files and images:
        yield Form(BOXES, coco_block(by_split(json_files, path, split_of), files, written))
    if xml and images:
        yield Form(BOXES, voc_block(path, xml, images, written))
    if images and (place := yolo_place(path, files)) is not None:
        yield Form(BOXES, {"type": "yolo", "path": written(place)})
    if block := mask_block(path, images, written):
        yield Form(MASKS, block)
    if images and (tables := _image_tables(path, files, split_of)):
        block = {split: written(file) for split, file in tables.items()}
        yield Form(TABLE, {"type": "table"} | block)
    if images:
        yield Form(FOLDER, {"type": "image-folder", "path": written(path)})


def _image_tables(path: Path, files: list[Path], split_of: Split) -> dict[str, Path]:
    """Split -> a table at the top whose rows name images; none where a metadata file does."""
    found: dict[str, Path] = {}
    for file in files:
        split = split_of(file) or "train"
        top = file.parent == path and ending(file) in TABLES and split not in found
        if top and not file.stem.startswith("metadata") and _names_images(file):
            found[split] = file
    return found if "train" in found else {}


def _names_images(file: Path) -> bool:
    try:
        first = read_table(file, "DATA").select(range(1))
    except (UserError, IndexError):
        return False
    return any(
        isinstance(value, str) and Path(value).suffix.lower() in ENDINGS
        for value in (first[0] if len(first) else {}).values()
    )
