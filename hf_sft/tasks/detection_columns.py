"""The objects of detection data in one form: classes by number, boxes x, y, width, height."""

from collections.abc import Iterable, Iterator
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value

from hf_sft.errors import DataError, listing, nearest
from hf_sft.images import each, problem_of, size_of
from hf_sft.tasks.detection_boxes import Mended, mended
from hf_sft.tasks.labels import first_few, ordered

ROWS = 5000  # whose objects are Python objects at the same time


class Objects:
    """How the data say what is where in an image.

    Args:
        image, objects: columns; an object column is a dict of lists, or a list of dicts.
        box, category: fields of the objects; ``area`` and ``iscrowd`` are taken where they are.
        corners: a box is x0, y0, x1, y1 in place of x, y, width, height.
        mend: cut boxes at the image's edge and leave out those without area, rather than refuse.
    """

    def __init__(
        self, image: str, objects: str, box: str, category: str, corners: bool, mend: bool
    ):
        self.image, self.objects, self.box, self.category = image, objects, box, category
        self.corners, self.mend = corners, mend

    def kinds(self, rows: Dataset) -> dict[str, Any]:
        """Field -> its feature; empty for a column of another form."""
        found = rows.features[self.objects]
        found = found.feature if isinstance(found, List) else found
        return found if isinstance(found, dict) else {}

    def kind(self, rows: Dataset) -> Any:
        """The feature of one object's class."""
        found = self.kinds(rows)[self.category]
        return found.feature if isinstance(found, List) else found

    def form_problems(self, place: str, rows: Dataset) -> list[str]:
        """What is wrong with the columns, whatever they hold."""
        problems = []
        if not isinstance(rows.features[self.image], Image):
            kind = rows.features[self.image]
            problems.append(
                f"{place}: {self.image!r} holds no images but {kind}. Correct task.image."
            )
        fields = self.kinds(rows)
        if not fields:
            return [*problems, f"{place}: {self.objects!r} holds no objects but "
                    f"{rows.features[self.objects]}. Wanted: {{{self.box}: a list of boxes, "
                    f"{self.category}: a list of classes}} in each row."]  # fmt: skip
        for key, name in (("task.box", self.box), ("task.category", self.category)):
            if name not in fields:
                problems.append(
                    f"{key} names {name!r}, but the objects of {place} have: {listing(fields)}."
                    f"{nearest(name, fields)}"
                )
        return problems

    def of(self, row: dict[str, Any]) -> dict[str, list]:
        """A row's objects as a dict of lists."""
        found = row[self.objects]
        if isinstance(found, list):
            return {key: [one[key] for one in found] for key in (found[0] if found else ())}
        return found or {}


def class_names(data: DatasetDict, form: Objects, keep: list | None) -> list[str]:
    """The classes in the order of the model's outputs: of a ClassLabel all, else those of train.

    Raises:
        DataError: none, or a name in ``keep`` that does not occur.
    """
    kind = form.kind(data["train"])
    if isinstance(kind, ClassLabel):
        names = list(kind.names)
    else:
        found = {name for name in _words(data["train"], form) if name is not None}
        names = ordered(kind, found)
    if not names:
        raise DataError("data.train has no object; at least one is needed.")
    if keep is None:
        return names
    wanted = [str(name) for name in keep]
    if problems := [
        f"data.keep_labels names {name!r}, but the data have: {listing(names)}."
        f"{nearest(name, names)}"
        for name in wanted
        if name not in names
    ]:
        raise DataError("\n".join(problems))
    return [name for name in names if name in wanted]


def word(value: Any, kind: Any) -> str | None:
    """The name of a class; None where there is none."""
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if isinstance(kind, ClassLabel):
        return kind.names[value]
    return str(value).strip() or None


def _words(rows: Dataset, form: Objects) -> Iterator[str | None]:
    kind = form.kind(rows)
    for row in rows.select_columns([form.objects]):
        yield from (word(value, kind) for value in form.of(row).get(form.category) or [])


def features(names: list[str]) -> Features:
    """Of the columns that `normalised` makes."""
    objects = {
        "bbox": List(List(Value("float32"))),
        "category": List(ClassLabel(names=names)),
        "area": List(Value("float32")),
        "iscrowd": List(Value("bool")),
    }
    return Features({"width": Value("int64"), "height": Value("int64"), "objects": objects})


class Normaliser:
    """One split's rows -> parts of the columns ``width``, ``height``, ``objects`` in one form.

    What is wrong gathers in ``problems``, what was mended in ``changes``. Objects of classes that
    exist but are not in ``names`` (``keep_labels``) are left out.
    """

    def __init__(self, rows: Dataset, form: Objects, names: list[str], known: set[str]):
        self.rows, self.form, self.known = rows, form, known
        self.number = {name: index for index, name in enumerate(names)}
        self.features, self.kind = features(names), form.kind(rows)
        self.problems: list[str] = []
        self.changes = Mended()

    def parts(self) -> Iterator[Dataset]:
        """Datasets of up to `ROWS` rows."""
        columns = [self.form.objects, *({"width", "height"} & set(self.rows.column_names))]
        sizes = self._sizes()
        for start in range(0, len(self.rows), ROWS):
            few = self.rows.select(range(start, min(start + ROWS, len(self.rows))))
            found = [
                self._row(start + number, row, size)
                for number, (row, size) in enumerate(
                    zip(few.select_columns(columns), sizes, strict=False), 1
                )
            ]
            yield Dataset.from_list(found, features=self.features)

    def _sizes(self) -> Iterator[tuple[str, tuple[int, int] | str]]:
        """(name, size or what is wrong) of every image; none is decoded whole."""
        undecoded = self.rows.select_columns([self.form.image]).cast_column(
            self.form.image, Image(decode=False)
        )
        return each(_look, (row[self.form.image] for row in undecoded))

    def _row(self, number: int, row: dict, looked: tuple) -> dict[str, Any]:
        name, size = looked
        place = f"row {number}" + (f" ('{name}')" if name else "")
        nothing = {"bbox": [], "category": [], "area": [], "iscrowd": []}
        if isinstance(size, str):
            self.problems.append(f"row {number}: {size}")
            return {"width": 0, "height": 0, "objects": nothing}
        said = row.get("width"), row.get("height")
        if all(said) and tuple(said) != size:
            self.problems.append(
                f"{place}: width and height say {said[0]} × {said[1]} pixels, but the image has "
                f"{size[0]} × {size[1]}: its boxes would be elsewhere. Correct the columns, or "
                "remove them if the boxes are right."
            )
        found = nothing | {}
        for index, (box, category, area, crowd) in enumerate(self._objects(row, place), 1):
            self._add(found, f"{place}, object {index}", box, category, (area, crowd), size)
        return {"width": size[0], "height": size[1], "objects": found}

    def _objects(self, row: dict, place: str) -> Iterable[tuple]:
        found = self.form.of(row)
        boxes, classes = found.get(self.form.box) or [], found.get(self.form.category) or []
        if len(boxes) != len(classes):
            self.problems.append(
                f"{place}: {len(boxes)} boxes for {len(classes)} classes. Correct the row."
            )
            return []
        none = [None] * len(boxes)
        return zip(
            boxes, classes, found.get("area") or none, found.get("iscrowd") or none, strict=False
        )

    def _add(self, found: dict, place: str, box: Any, category: Any, more: tuple, size: tuple):
        name = word(category, self.kind)
        if name not in self.known:
            shown = "no class" if name is None else f"the class {name!r}"
            self.problems.append(
                f"{place} has {shown}; known: {listing(self.known_in_order())}."
                f"{nearest(name, self.known)} Correct the object, or remove it."
            )
            return
        if name not in self.number:
            return  # left out by keep_labels
        fitting = mended(box, size, self.form.corners, self.form.mend, self.changes)
        if isinstance(fitting, str):
            self.problems.append(f"{place} ({name}): {fitting}")
        elif fitting is not None:
            whole = fitting[2] * fitting[3]
            area, crowd = more
            found["bbox"].append(fitting)
            found["category"].append(self.number[name])
            found["area"].append(min(area, whole) if area and area > 0 else whole)
            found["iscrowd"].append(bool(crowd))

    def known_in_order(self) -> list[str]:
        return sorted(self.known)

    def told(self, split: str) -> list[str]:
        """The first problems, a line each."""
        return first_few(f"data.{split}", self.problems)


def _look(image: dict | None) -> tuple[str | None, tuple[int, int] | str]:
    name = image and image["path"]
    problem = problem_of(image)
    return name, problem if problem is not None else size_of(image)
