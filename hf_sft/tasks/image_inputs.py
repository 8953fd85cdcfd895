"""Images as a task is given them: from columns of paths, bytes or images, or from a folder."""

from pathlib import Path

from datasets import Dataset, Image, Value

from hf_sft.errors import DataError
from hf_sft.images import ENDINGS, each, problem_of
from hf_sft.tasks.labels import first_few


def as_images(rows: Dataset, column: str) -> Dataset:
    """The rows with paths and bytes in ``column`` taken for images; nothing is decoded."""
    kind = rows.features[column]
    stored = isinstance(kind, dict) and kind.keys() == {"bytes", "path"}
    if stored or (isinstance(kind, Value) and kind.dtype in ("string", "binary")):
        return rows.cast_column(column, Image())
    return rows


def image_problems(place: str, rows: Dataset, column: str) -> list[str]:
    """A line for each of the first images that cannot be decoded, or one if there are none."""
    if not isinstance(kind := rows.features[column], Image):
        return [f"{place}: {column!r} holds no images but {kind}. Correct task.image."]
    undecoded = rows.cast_column(column, Image(decode=False))[column]
    problems = enumerate(each(problem_of, undecoded), 1)
    return first_few(place, [f"row {number}: {line}" for number, line in problems if line])


def read_images(path: Path, column: str) -> Dataset:
    """An image file, or all in a folder and those below it, sorted by path.

    Raises:
        DataError: there are none, or some cannot be decoded.
    """
    inside = path.rglob("[!.]*") if path.is_dir() else [path]  # not ._photo.jpg
    files = sorted(str(p) for p in inside if p.suffix.lower() in ENDINGS and p.is_file())
    if not files:
        raise DataError(f"'{path}': no images there. Give an image file or a folder of images.")
    rows = Dataset.from_dict({column: files}).cast_column(column, Image())
    if problems := image_problems(f"'{path}'", rows, column):
        raise DataError("\n".join(problems))
    return rows


def image_names(rows: Dataset, column: str) -> list[str | None]:
    """The path of every image as the data has it; None for bytes."""
    undecoded = rows.cast_column(column, Image(decode=False))[column]
    return [image["path"] for image in undecoded]
