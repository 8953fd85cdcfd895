"""Which columns of a data set an image task reads, by their names and types."""

from typing import Any

from datasets import Dataset, Image

from hf_sft.new.column_roles import Roles, inner, is_text, named, unseen

IMAGES = ("image", "img", "picture", "photo", "file", "path", "file_name", "filename")
MASKS = ("mask", "annotation", "label", "segmentation", "masks", "annotations", "seg")
OBJECTS = ("objects", "annotations", "object", "boxes", "labels")
BOXES = ("bbox", "boxes", "box", "bboxes")
CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "classes", "name")


def image_column(rows: Dataset, given: dict[str, Any]) -> str:
    """The column of images: as said, by its type, or by its name.

    Raises:
        DataError: there is none.
    """
    images = [c for c, kind in rows.features.items() if isinstance(kind, Image)]
    texts = [c for c in rows.column_names if is_text(rows.features[c])]
    image = given.get("image") or named(images, IMAGES) or next(iter(images), named(texts, IMAGES))
    if image is None:
        raise unseen("images", ["task.image"], rows)
    return image


def object_detection(rows: Dataset, given: dict[str, Any]) -> Roles:
    """A column of objects: a dict of lists, or a list of dicts, with boxes and classes."""
    image = image_column(rows, given)
    fields = {column: _fields(rows, column) for column in rows.column_names}
    boxed = [column for column, found in fields.items() if named(found, BOXES)]
    objects = given.get("objects") or named(boxed, OBJECTS) or next(iter(boxed), None)
    if objects is None or objects not in fields:
        raise unseen("objects with boxes", ["task.objects"], rows)
    box = given.get("box") or named(fields[objects], BOXES)
    category = given.get("category") or named(fields[objects], CLASSES)
    if box is None or category is None:
        raise unseen(f"boxes and classes in {objects!r}", ["task.box", "task.category"], rows)
    keys = {"image": image, "objects": objects, "box": box, "category": category}
    return Roles(keys, [image], objects, "objects", "image")


def image_segmentation(rows: Dataset, given: dict[str, Any]) -> Roles:
    """A column of masks beside that of images, else objects with outlines."""
    image = image_column(rows, given)
    pictures = [c for c, kind in rows.features.items() if isinstance(kind, Image) and c != image]
    mask = given.get("mask") or named(pictures, MASKS) or next(iter(pictures), None)
    if mask is not None:
        return Roles({"image": image, "mask": mask}, [image], mask, "masks", "image")
    outlined = [c for c in rows.column_names if "segmentation" in _fields(rows, c)]
    objects = given.get("objects") or named(outlined, OBJECTS) or next(iter(outlined), None)
    if objects is None:
        raise unseen("masks, or objects with outlines", ["task.mask", "task.objects"], rows)
    problem = given.get("problem") or "instance"
    keys = {"problem": problem, "image": image, "objects": objects}
    return Roles(keys, [image], objects, "objects", "image")


def masked_image_modeling(rows: Dataset, given: dict[str, Any]) -> Roles:
    """Images alone."""
    image = image_column(rows, given)
    return Roles({"image": image}, [image], kind="image")


def _fields(rows: Dataset, column: str) -> list[str]:
    """The fields of a column of objects; none of another column."""
    feature = rows.features[column]
    feature = inner(feature) if inner(feature) is not None else feature
    return list(feature) if isinstance(feature, dict) else []
