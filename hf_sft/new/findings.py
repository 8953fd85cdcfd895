"""What looks wrong in labelled data: empty and long texts, missing, tiny and look-alike classes."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hf_sft.errors import listing

MOST_ROWS = 5  # row numbers that a finding names
FEW = 5  # rows below which a class is tiny
UNBALANCED = 10  # times as many rows in the largest class as in the smallest
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")  # scripts without spaces: every character
JOINTS = re.compile(r"(?<=\w)[\s_\-./]+(?=\w)")


@dataclass(frozen=True)
class Finding:
    """One thing that may spoil a training or its score.

    Attributes:
        kind: the check that found it.
        text: what it is, with the number of rows.
        count: rows that have it, or classes where it is about classes.
        rows: numbers of the first of them, from 1 and without the header.
        example: one of them, to be recognised; may be empty.
    """

    kind: str
    text: str
    count: int
    rows: tuple[int, ...] = ()
    example: str = ""

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.rows) else ""
        rows = f" Rows {listing(self.rows)}{more}." if len(self.rows) > 1 else ""
        return f"{self.text}{rows}" + (f" Example: {self.example}." if self.example else "")


def counted(count: int, noun: str) -> str:
    """``1 row``, ``2 rows``, ``3 classes``."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count} {noun}{'' if count == 1 else plural}"


def short(text: object, most: int = 60) -> str:
    """In quotes, on one line, cut after ``most`` characters."""
    line = " ".join(str(text).split())
    return f"'{line[:most]}…'" if len(line) > most else f"'{line}'"


def empty_texts(split: str, column: str, texts: Iterable[str | None]) -> list[Finding]:
    """Rows without a text, or with nothing but spaces."""
    rows = [i for i, text in enumerate(texts, 1) if text is None or not str(text).strip()]
    if not rows:
        return []
    text = f"{split}: {counted(len(rows), 'row')} with no text in {column!r}."
    return [Finding("empty", text, len(rows), tuple(rows[:MOST_ROWS]), f"{split} row {rows[0]}")]


def long_texts(split: str, texts: Sequence[str | None], limit: int) -> list[Finding]:
    """Rows with more words than the model takes tokens; a word is one token or more."""
    lengths = [len(WORD.findall(text or "")) for text in texts]
    rows = [i for i, length in enumerate(lengths, 1) if length > limit]
    if not rows:
        return []
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    text = (
        f"{split}: {counted(len(rows), 'row')} longer than {limit} words; the model reads "
        f"{limit} tokens and the end is cut."
    )
    example = f"{split} row {longest + 1} has {lengths[longest]} words {short(texts[longest])}"
    return [Finding("long", text, len(rows), tuple(rows[:MOST_ROWS]), example)]


def missing_labels(split: str, column: str, labels: Sequence[str | None]) -> list[Finding]:
    """Rows without a label."""
    rows = [i for i, label in enumerate(labels, 1) if label is None]
    if not rows:
        return []
    text = f"{split}: {counted(len(rows), 'row')} without a label in {column!r}."
    return [Finding("unlabelled", text, len(rows), tuple(rows[:MOST_ROWS]))]


def class_findings(labels: Mapping[str, Sequence[str | None]]) -> list[Finding]:
    """Of the labels of every split: tiny, look-alike and unbalanced classes, and strange ones."""
    counts = {
        split: Counter(name for name in found if name is not None)
        for split, found in labels.items()
    }
    return [
        *look_alikes(counts),
        *tiny_classes(counts["train"]),
        *imbalance(counts["train"]),
        *strange_classes(labels, counts["train"]),
        *absent_classes(counts),
    ]


def look_alikes(counts: Mapping[str, Counter]) -> list[Finding]:
    """Labels that differ only in case, spaces, hyphens and the like: mostly one class, misspelt."""
    total = sum(counts.values(), Counter())
    alike = defaultdict(list)
    for name in total:
        alike[JOINTS.sub(" ", name.casefold()).strip()].append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    return [
        Finding(
            "look-alike labels",
            "labels that differ only in case, spaces or joints, and count as classes of their own: "
            + ", ".join(f"{name!r} ({total[name]})" for name in sorted(names))
            + ".",
            sum(total[name] for name in names),
        )
        for names in groups
    ]


def tiny_classes(train: Counter) -> list[Finding]:
    """Classes of fewer than ``FEW`` rows."""
    tiny = sorted((count, name) for name, count in train.items() if count < FEW)
    if not tiny:
        return []
    names = listing(f"{name!r} ({count})" for count, name in tiny)
    text = f"train: {counted(len(tiny), 'class')} with fewer than {FEW} rows: {names}."
    return [Finding("tiny classes", text, len(tiny))]


def imbalance(train: Counter) -> list[Finding]:
    """A largest class that is ``UNBALANCED`` times the smallest."""
    ranked = train.most_common()
    if len(ranked) < 2 or ranked[0][1] < UNBALANCED * ranked[-1][1]:
        return []
    (most, large), (least, small) = ranked[0], ranked[-1]
    share = large / train.total()
    text = (
        f"train: {most!r} has {large} rows, {least!r} {small}; always answering {most!r} would be "
        f"right for {share:.0%} of it. Read balanced_accuracy and macro_f1 beside accuracy."
    )
    return [Finding("imbalance", text, large)]


def strange_classes(labels: Mapping[str, Sequence[str | None]], train: Counter) -> list[Finding]:
    """Rows of other splits with a class that train does not have."""
    found = []
    for split, names in labels.items():
        rows = [i for i, name in enumerate(names, 1) if name is not None and name not in train]
        if rows:
            strange = listing(sorted({names[i - 1] for i in rows}))
            text = f"{split}: {counted(len(rows), 'row')} of classes that train lacks: {strange}."
            found.append(Finding("strange classes", text, len(rows), tuple(rows[:MOST_ROWS])))
    return found


def absent_classes(counts: Mapping[str, Counter], noun: str = "row") -> list[Finding]:
    """Classes of train of which another split has none: nothing is measured of them there."""
    found = []
    for split, here in counts.items():
        if absent := sorted(set(counts["train"]) - set(here)):
            text = f"{split}: no {noun} of {counted(len(absent), 'class')}: {listing(absent)}."
            found.append(Finding("absent classes", text, len(absent)))
    return found
