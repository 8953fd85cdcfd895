"""How the tags of words spell entities: BIO, BIOES, BILOU, IO, or not at all (parts of speech)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from hf_sft.errors import DataError, listing

Scheme = Literal["BIO", "BIOES", "BILOU", "IO", "none"]
Span = tuple[str, int, int]  # type, first word, the word after the last

OUTSIDE = "O"
LETTERS = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU", "IO": "I"}
# A set with several of these is of parts of speech, in which O is a tag like others: Universal
# Dependencies, Penn Treebank, STTS, Twitter (Gimpel et al. 2011, whose O is a pronoun).
PARTS_OF_SPEECH = {
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN",
    "PUNCT", "SCONJ", "SYM", "VERB", "CC", "CD", "DT", "IN", "JJ", "NN", "NNP", "NNS", "PRP", "RB",
    "VB", "VBD", "VBG", "VBN", "VBP", "VBZ", "ART", "APPR", "ADJA", "VVFIN", "N", "V", "A", "R",
}  # fmt: skip
LIKE_BIOES = {"L": "E", "U": "S"}


def detect(names: Iterable[str]) -> Scheme:
    """The scheme of tags like ``B-PER``; of ``PER`` and ``O``, IO; of others, none.

    Parts of speech are of none, also where one of them is called O.

    Raises:
        DataError: some tags look like one scheme and some like another, or like none.
    """
    inside = sorted(set(names) - {OUTSIDE})
    bare = [name for name in inside if name[1:2] != "-" or name[0] not in "BIESLU" or not name[2:]]
    if len(bare) == len(inside):
        speech = len(PARTS_OF_SPEECH.intersection(inside)) > 1
        return "IO" if OUTSIDE in names and inside and not speech else "none"
    letters = {name[0] for name in inside}
    fitting: list[Scheme] = ["IO"] if letters == {"I"} else []
    fitting += [s for s in ("BIO", "BIOES", "BILOU") if letters <= set(LETTERS[s])]
    if bare or not fitting:
        raise DataError(
            f"the tags {listing(inside)} are of no one scheme (BIO, BIOES, BILOU, IO). Correct "
            "them; where they mean no entities, set task.scheme: none."
        )
    return fitting[0]


def misfits(names: Iterable[str], scheme: Scheme) -> list[str]:
    """The tags that a scheme does not know."""
    if scheme in ("none", "IO"):
        return []
    return [n for n in names if n != OUTSIDE and (n[1:2] != "-" or n[0] not in LETTERS[scheme])]


def in_order(names: Iterable[str], scheme: Scheme) -> list[str]:
    """All tags that the types among ``names`` can have: O, then type by type.

    Every letter of the scheme is there, also one that did not occur.
    """
    found = set(names)
    if scheme == "none":
        return sorted(found)
    if scheme == "IO":
        return [OUTSIDE, *sorted(found - {OUTSIDE})]
    kinds = sorted({name[2:] for name in found - {OUTSIDE}})
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in kinds for letter in LETTERS[scheme])]


def type_of(name: str, scheme: Scheme) -> str:
    """The type in a tag: PER of B-PER; a tag of no scheme is its own."""
    return _plain(name, scheme)[2:] if scheme != "none" and name != OUTSIDE else name


def _plain(name: str, scheme: Scheme) -> str:
    """A tag as seqeval reads it: BILOU as BIOES, the PER of IO as I-PER."""
    if name == OUTSIDE:
        return name
    if scheme == "IO":
        return name if name.startswith("I-") else f"I-{name}"
    return LIKE_BIOES.get(name[0], name[0]) + name[1:] if scheme == "BILOU" else name


def plain(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The tags of a sentence as seqeval reads them."""
    return [_plain(name, scheme) for name in tags]


def spans(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """The entities of a sentence, also of one that breaks the scheme.

    As conlleval counts them: an I-X after O, or after another type, begins an entity. Of no
    scheme, every word by itself.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    if scheme == "none":
        return [(name, i, i + 1) for i, name in enumerate(tags)]
    return [(kind, first, last + 1) for kind, first, last in get_entities(plain(tags, scheme))]


def faults(tags: Sequence[str], scheme: Scheme) -> Iterator[tuple[int, str]]:
    """(word, what is wrong) wherever a sentence breaks its scheme."""
    if scheme in ("IO", "none"):
        return
    before = plain_before = OUTSIDE
    for i, now in enumerate([*tags, OUTSIDE]):
        here = _plain(now, scheme)
        opened, goes_on = plain_before[0] in "BI", here[0] in "IE"
        if goes_on and not (opened and plain_before[2:] == here[2:]):
            yield i, f"{now} follows {before if i else 'the beginning of the sentence'}"
        elif opened and not goes_on and scheme != "BIO":
            yield i - 1, f"{before} ends its entity, where {_ends(before[2:], scheme)} is wanted"
        before, plain_before = now, here


def _ends(kind: str, scheme: Scheme) -> str:
    return " or ".join(f"{letter}-{kind}" for letter in LETTERS[scheme][2:])


def repaired(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The same entities, spelled as the scheme wants; a right sentence stays as it is."""
    if scheme in ("IO", "none"):
        return list(tags)
    found = [OUTSIDE] * len(tags)
    for kind, first, end in spans(tags, scheme):
        letters = _spelled(end - first, scheme)
        found[first:end] = [f"{letter}-{kind}" for letter in letters]
    return found


def _spelled(length: int, scheme: Scheme) -> str:
    if scheme == "BIO":
        return "B" + "I" * (length - 1)
    _, _, last, single = LETTERS[scheme]
    return single if length == 1 else "B" + "I" * (length - 2) + last
