"""Masks of which nothing is left but one class: mostly 0 and 255, where 255 is no class."""

from collections.abc import Iterable

import numpy as np
from datasets import Dataset, Image

from hf_sft import images
from hf_sft.errors import DataError, listing
from hf_sft.tasks.segmentation_masks import numbers


def ignored_share(rows: Dataset, mask: str, ignore: int | None) -> float:
    """The share of all pixels of the masks that hold ``ignore``, 0..1; nothing broken in them."""
    if ignore is None:
        return 0.0
    read = rows.select_columns([mask]).cast_column(mask, Image(decode=False))
    found = list(images.each(lambda row: _count(row[mask], ignore), read))
    return sum(here for here, _ in found) / max(1, sum(pixels for _, pixels in found))


def _count(mask: dict, ignore: int) -> tuple[int, int]:
    found = numbers(Image().decode_example(mask))
    return int(np.count_nonzero(found == ignore)), found.size


def refuse_one_class(
    seen: Iterable[int], names: list[str] | None, ignore: int | None, share: float, first: int
) -> None:
    """Masks of one class teach nothing.

    Args:
        seen: the classes in the masks of train.
        names: of all classes, where they are known.
        ignore: the number that is no class.
        share: of the pixels of train that hold it.
        first: the number in the file of the first class.

    Raises:
        DataError: fewer than two classes are seen.
    """
    seen = sorted(seen)
    if len(seen) > 1:
        return
    held = listing([number + first for number in seen])
    if not share:
        raise DataError(
            f"data.train: the masks hold only {held}, one class; two are needed. Correct data.path "
            "or the masks, or add masks with other classes."
        )
    two = names if names and len(names) == 2 else ["background", "object"]
    both = listing([*(number + first for number in seen), ignore])
    raise DataError(
        f"data.train: the masks hold only {both}, and {ignore} ({share:.0%} of the pixels) is "
        f"task.ignore_index, no class: too few are left, two are needed. If {ignore} is a class, "
        f"name both colours: data.palette: {{{two[0]}: [0, 0, 0], {two[1]}: "
        f"[{ignore}, {ignore}, {ignore}]}} (loader mask-folder), or write 1 in its place in the "
        "masks."
    )
