"""Tags found in the data: their names and order, what is wrong with them and where."""

import logging
from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from hf_sft.errors import DataError, listing, nearest
from hf_sft.tasks import tag_schemes
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.tag_schemes import OUTSIDE, Scheme

log = logging.getLogger(__name__)

PLACE = ("file", "lines")  # columns of a loader that says where each word stands
Tags = list[list[str]]  # per sentence, per word


class TagColumns:
    """The columns ``tokens`` and ``tags`` of a data set, of one scheme.

    Args:
        scheme: None finds out.
        order: names for tags given as numbers, and their order; None where the data have them.
    """

    def __init__(
        self, tokens: str, tags: str, scheme: Scheme | None = None, order: list[str] | None = None
    ):
        self.tokens, self.tags, self.scheme, self.order = tokens, tags, scheme, order

    def encoded(self, data: DatasetDict, repair: bool, keep: list | None) -> DatasetDict:
        """The sentences with tags as ClassLabel, numbered alike in every split.

        The order is ``order``, or the data's ClassLabel, or else O and then type by type.
        ``repair`` respells what breaks the scheme; of other types than those in ``keep`` every
        word becomes O.

        Raises:
            DataError: no lists of words and tags, of unequal length, tags of no one scheme or that
                break it, or that train does not have; split and row, or file and line, are named.
        """
        data = DatasetDict(
            {split: _with_words(rows, self.tokens, split) for split, rows in data.items()}
        )
        if problems := [p for split in data for p in self._shape_problems(split, data[split])]:
            raise DataError("\n".join(problems))
        tags = {split: self._named(rows) for split, rows in data.items()}
        known = self._known(data["train"], tags["train"])
        try:
            scheme = self.scheme or tag_schemes.detect(known)
        except DataError as error:
            first = self._first_odd(data["train"], tags["train"], known)
            raise DataError(f"data.train: {error}{first}") from error
        if odd := tag_schemes.misfits(known, scheme):
            raise DataError(f"task.scheme: {scheme} has no tags like {listing(odd)}.")
        names = self._names(data["train"], known, scheme)
        problems = self._name_problems(tags, names)
        for split, rows in data.items():
            tags[split], wrong = self._spelled(split, rows, tags[split], scheme, repair)
            problems += wrong
        if keep is not None and not problems:
            names = _kept(names, [str(kind) for kind in keep], scheme)
            tags = {s: [_only(names, tags) for tags in found] for s, found in tags.items()}
        if problems:
            raise DataError("\n".join(problems))
        return DatasetDict({s: self._replaced(rows, tags[s], names) for s, rows in data.items()})

    def _shape_problems(self, split: str, rows: Dataset) -> list[str]:
        """A line for each of the first sentences whose words and tags are not one to one."""
        lists = [c for c in (self.tokens, self.tags) if not isinstance(rows.features[c], List)]
        if lists:
            return [
                f"data.{split}: {column!r} holds no lists. Write tokens as a list of words and "
                "tags as a list with one tag for each, as in a json file."
                for column in lists
            ]
        problems = []
        for row, (words, tags) in enumerate(
            zip(rows[self.tokens], rows[self.tags], strict=True), 1
        ):
            if tags is None or len(words) != len(tags):
                said = f"has {len(words)} words and {len(tags or [])} tags; one for each is wanted."
            elif bad := [w for w in words if not isinstance(w, str)]:
                said = f"{self.tokens!r} has {bad[0]!r}, which is no word."
            elif bad := [tag for tag in tags if self._unusable(tag, rows.features[self.tags])]:
                said = f"{self.tags!r} has {bad[0]!r}, which is no tag.{self._remedy(bad[0])}"
            else:
                continue
            problems.append(f"row {row}: {said}")
        return first_few(f"data.{split}", problems)

    def _unusable(self, tag: Any, feature: Any) -> bool:
        if isinstance(tag, int) and not isinstance(tag, bool):
            names = self.order or getattr(feature.feature, "names", [])
            return not 0 <= tag < len(names)
        return not isinstance(tag, str) or not tag.strip()

    def _remedy(self, tag: Any) -> str:
        if not isinstance(tag, int):
            return ""
        return " Numbers need names: set task.tag_names: [O, B-PER, I-PER, …], in their order."

    def _named(self, rows: Dataset) -> Tags:
        names = getattr(rows.features[self.tags].feature, "names", None) or self.order or []
        return [
            [names[tag] if isinstance(tag, int) else tag.strip() for tag in tags]
            for tags in rows[self.tags]
        ]

    def _known(self, train: Dataset, tags: Tags) -> list[str]:
        feature = train.features[self.tags].feature
        return self.order or getattr(feature, "names", None) or sorted({t for s in tags for t in s})

    def _first_odd(self, rows: Dataset, tags: Tags, known: list[str]) -> str:
        """Where a tag first stands that is not of the scheme which knows the most of them."""
        odd = min((tag_schemes.misfits(known, s) for s in ("BIO", "BIOES", "BILOU")), key=len)
        for row, sentence in enumerate(tags):
            for word, tag in enumerate(sentence):
                if tag in odd:
                    return f" The first: {tag!r} at {_place(rows, row, word, self.tokens)}."
        return ""

    def _names(self, train: Dataset, known: list[str], scheme: Scheme) -> list[str]:
        settled = self.order or isinstance(train.features[self.tags].feature, ClassLabel)
        return known if settled else tag_schemes.in_order(known, scheme)

    def _name_problems(self, tags: dict[str, Tags], names: list[str]) -> list[str]:
        problems = []
        if len(names) < 2:
            problems.append(
                f"data.train: {self.tags!r} has the single tag {listing(names)}; two are needed."
            )
        for split, found in tags.items():
            if unknown := sorted({tag for sentence in found for tag in sentence} - set(names)):
                problems.append(
                    f"data.{split}: {self.tags!r} has tags that train does not: {listing(unknown)}."
                    f" Train has: {listing(names)}.{nearest(unknown[0], names)}"
                )
        return problems

    def _spelled(
        self, split: str, rows: Dataset, tags: Tags, scheme: Scheme, repair: bool
    ) -> tuple[Tags, list[str]]:
        """The tags as the scheme wants them, and a line for each of the first faults."""
        found = [(i, *fault) for i, s in enumerate(tags) for fault in tag_schemes.faults(s, scheme)]
        if not found:
            return tags, []
        if not repair:
            lines = [f"{_place(rows, i, word, self.tokens)}: {said}." for i, word, said in found]
            return tags, [
                *first_few(f"data.{split}", lines),
                f"data.{split}: {len(found)} tags break the scheme {scheme}. Correct them, or set "
                "task.repair: true, which lets such a word begin an entity, as conlleval does.",
            ]
        log.warning(f"data.{split}: {len(found)} tags that break the scheme {scheme} are repaired.")
        return [tag_schemes.repaired(sentence, scheme) for sentence in tags], []

    def _replaced(self, rows: Dataset, tags: Tags, names: list[str]) -> Dataset:
        number = {name: i for i, name in enumerate(names)}
        order = [name for name in rows.column_names if not _says_where(rows, name)]
        codes = [[number[tag] for tag in sentence] for sentence in tags]
        rows = rows.remove_columns(self.tags).add_column(
            self.tags, codes, feature=List(ClassLabel(names=names))
        )
        return rows.select_columns(order)


def _with_words(rows: Dataset, tokens: str, split: str) -> Dataset:
    """The sentences that have a word; how many have none is told.

    Raises:
        DataError: no sentence has one.
    """
    whole = [i for i, words in enumerate(rows[tokens]) if words]
    if len(whole) == len(rows):
        return rows
    if not whole:
        raise DataError(f"data.{split}: {tokens!r} is empty in every row.")
    log.warning(f"data.{split}: {len(rows) - len(whole)} rows without words are left out.")
    return rows.select(whole)


def _place(rows: Dataset, row: int, word: int, tokens: str) -> str:
    """File and line where the loader tells them, else row and word, counted from 1."""
    found = rows[row]
    shown = f"{found[tokens][word]!r}"
    if all(_says_where(rows, name) for name in PLACE):
        return f"'{found['file']}' line {found['lines'][word]} ({shown})"
    return f"row {row + 1}, word {word + 1} ({shown})"


def _says_where(rows: Dataset, name: str) -> bool:
    """Whether this is one of the two columns of `PLACE`, not the user's own of that name."""
    lines = rows.features.get("lines")
    return name in PLACE and "file" in rows.features and lines == List(Value("int32"))


def _kept(names: list[str], kinds: list[str], scheme: Scheme) -> list[str]:
    """The tags of these types, O first.

    Raises:
        DataError: the tags mean no entities, or there is no such type.
    """
    if scheme == "none":
        raise DataError("data.keep_labels: these tags are no entities. Leave the key out.")
    types = [tag_schemes.type_of(name, scheme) for name in names]
    if problems := [
        f"data.keep_labels names {kind!r}, but the types are: "
        f"{listing(sorted({*types} - {OUTSIDE}))}.{nearest(kind, types)}"
        for kind in kinds
        if kind not in types
    ]:
        raise DataError("\n".join(problems))
    return [n for n, kind in zip(names, types, strict=True) if kind in (*kinds, OUTSIDE)]


def _only(names: list[str], tags: list[str]) -> list[str]:
    return [tag if tag in names else OUTSIDE for tag in tags]


def sentences(rows: Dataset, column: str) -> Iterator[list[str]]:
    """The words of every row, a text as its words parted by spaces."""
    for given in rows[column]:
        yield given.split() if isinstance(given, str) else list(given)
