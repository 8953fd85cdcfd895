"""Questions about one text in several languages get one title, so that parts keep them whole."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from datasets import Dataset

from hf_sft.squad_files import made_title


def with_joint_titles(files: Sequence[tuple[str, Dataset]]) -> list[Dataset]:
    """The rows of files in several languages, those that belong together under one ``title``.

    Rows belong together that have a title or an id in common (an id that is a number, in one
    split). Without titles and ids of their own, files of one split with as many rows are
    translations row by row. The title of rows that belong together is that of the first.

    Args:
        files: (split, rows as `read_squad` gives them) each.
    """
    if len({language for _, rows in files for language in _languages(rows)}) < 2:
        return [rows for _, rows in files]
    groups = _Groups()
    for split, rows in files:
        alike = [len(more) for s, more in files if s == split].count(len(rows)) > 1
        for title, key in zip(rows["title"], _keys(split, rows, alike), strict=True):
            first = groups.of(("title", title))
            if key is not None:
                groups.join(first, key)
    return [_titled(rows, groups) for _, rows in files]


def _keys(split: str, rows: Dataset, alike: bool) -> Iterator[tuple | None]:
    """Per row what it shares with its translations beside the title; None for what is not known.

    ``alike``: another file of the split has as many rows.
    """
    numbered = rows["id"][:] == [str(i) for i in range(1, len(rows) + 1)]  # or made by the reader
    own = any(made_title(c) != t for c, t in zip(rows["context"], rows["title"], strict=True))
    for name in rows["id"]:
        if numbered and (own or not alike):
            yield None
        else:
            yield ("id", split, name) if name.isdecimal() else ("id", name)


def _languages(rows: Dataset) -> set[str]:
    return set(rows["language"]) if "language" in rows.column_names else set()


def _titled(rows: Dataset, groups: "_Groups") -> Dataset:
    old = rows["title"][:]
    new = [groups.of(("title", title))[1] for title in old]
    if new == old:
        return rows
    order, feature = rows.column_names, rows.features["title"]
    rows = rows.remove_columns("title").add_column("title", new, feature=feature)
    return rows.select_columns(order)


class _Groups:
    """Disjoint sets; what a set is known by is the first that came."""

    def __init__(self) -> None:
        self.parents: dict[Hashable, Hashable] = {}
        self.order: dict[Hashable, int] = defaultdict(lambda: len(self.order))

    def of(self, one: Hashable) -> Hashable:
        """Whom it belongs to."""
        self.order[one]
        while (parent := self.parents.get(one, one)) != one:
            self.parents[one] = self.parents.get(parent, parent)
            one = parent
        return one

    def join(self, one: Hashable, other: Hashable) -> None:
        """Make the two sets one."""
        first, second = sorted((self.of(one), self.of(other)), key=self.order.__getitem__)
        self.parents[second] = first
