"""Rows that occur more than once, in one split or across two: duplicates and leakage."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_sft.new.findings import MOST_ROWS, Finding, counted, short

MARK = re.compile(r"[^\w\s]")
APOSTROPHES = str.maketrans("", "", "'’`´")
ODD = np.uint64(0x9E3779B97F4A7C15)  # mixes an answer's key into an input's


@dataclass(frozen=True)
class Inputs:
    """What a split asks and answers, as numbers to compare; blank inputs are left out.

    Attributes:
        numbers: (n,) row numbers, from 1.
        exact: (n,) 64-bit keys of the inputs as they are.
        normal: (n,) keys of them without case, spaces and punctuation.
        answered: (n,) keys of the normal input together with its answer; None without answers.
        shown: (n,) the inputs as a person recognises them.
    """

    numbers: np.ndarray
    exact: np.ndarray
    normal: np.ndarray
    answered: np.ndarray | None
    shown: Sequence[str]


def key(content: str | bytes) -> int:
    """64 bits of a BLAKE2 digest: among a million rows two differ and agree with chance 3e-8."""
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def normal_form(text: str) -> str:
    """The text without case, punctuation and runs of spaces; symbols and emoji stay."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(APOSTROPHES)
    words = MARK.sub(_blank_punctuation, text).split()
    return " ".join(words) or " ".join(text.split())  # "?!" is nothing but punctuation


def _blank_punctuation(match: re.Match) -> str:
    return " " if unicodedata.category(match[0]).startswith("P") else match[0]


def inputs_of(
    contents: Iterable[str | bytes | None], answers: Iterable[str] | None, names: Sequence[str] = ()
) -> Inputs:
    """Keys of texts, or of the bytes of files, which have no other normal form than themselves.

    ``names``: how rows are shown, for contents that are no text.
    """
    rows = [
        (i, key(content), key(_form(content)), names[i] if names else content)
        for i, content in enumerate(contents)
        if content and not _blank(content)
    ]
    numbers, exact, normal, shown = zip(*rows, strict=True) if rows else ((), (), (), ())
    normal = np.array(normal, np.uint64)
    answered = None
    if answers is not None:
        answers = list(answers)
        answered = normal ^ (np.array([key(answers[i]) for i in numbers], np.uint64) * ODD)
    places = np.array(numbers, np.int64) + 1
    return Inputs(places, np.array(exact, np.uint64), normal, answered, shown)


def _blank(content: str | bytes) -> bool:
    return isinstance(content, str) and not content.strip()


def _form(content: str | bytes) -> str | bytes:
    return normal_form(content) if isinstance(content, str) else content


def duplicates(split: str, inputs: Inputs, other: str = "another label") -> list[Finding]:
    """Rows of one split that repeat an earlier one, and among them those with another answer."""
    first = _first(inputs.normal)
    again = np.flatnonzero(first != np.arange(len(first)))
    if len(again) == 0:
        return []
    word = int((_first(inputs.exact) != np.arange(len(first))).sum())
    found = [
        Finding(
            "duplicates",
            f"{split}: {counted(len(again), 'row')} {_verb(again, 'repeat')} an earlier one "
            f"({_how(word, len(again))}).",
            len(again),
            _rows(inputs, again),
            _pair(split, inputs, again[0], split, inputs, first[again[0]]),
        )
    ]
    if inputs.answered is None:
        return found
    strange = again[inputs.answered[again] != inputs.answered[first[again]]]
    if len(strange):
        text = (
            f"{split}: {counted(len(strange), 'row')} {_verb(strange, 'repeat')} an earlier one "
            f"with {other}. One of the two is wrong, or the input does not tell."
        )
        example = _pair(split, inputs, strange[0], split, inputs, first[strange[0]])
        found.append(Finding("contradictions", text, len(strange), _rows(inputs, strange), example))
    return found


def leakage(
    split: str, inputs: Inputs, seen: str, before: Inputs, other: str = "another label"
) -> list[Finding]:
    """Rows of ``split`` whose input occurs in ``seen`` (train), too."""
    inside = np.isin(inputs.normal, before.normal)
    leaked = np.flatnonzero(inside)
    if len(leaked) == 0:
        return []
    how = _how(int(np.isin(inputs.exact, before.exact).sum()), len(leaked))
    text = f"{split}: {counted(len(leaked), 'row')} {_verb(leaked, 'occur')} in {seen} too ({how})"
    if inputs.answered is not None:
        strange = np.flatnonzero(inside & ~np.isin(inputs.answered, before.answered))
        text += f", {len(strange) or 'none'} with {other} there"
        leaked = np.concatenate([strange, np.setdiff1d(leaked, strange)])
    share = len(leaked) / len(inputs.numbers)
    text += f". A score on them shows memory, not skill ({share:.1%} of {split})."
    there = int(np.flatnonzero(before.normal == inputs.normal[leaked[0]])[0])
    example = _pair(split, inputs, leaked[0], seen, before, there)
    return [Finding("leakage", text, len(leaked), _rows(inputs, np.sort(leaked)), example)]


def _first(keys: np.ndarray) -> np.ndarray:
    """(n,) for every row the place of the first with its key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _how(word: int, count: int) -> str:
    if word == count:
        return "exactly"
    apart = "but for case, spaces or punctuation"
    return f"{word} exactly, {count - word} {apart}" if word else f"equal {apart}"


def _verb(rows: np.ndarray, verb: str) -> str:
    return f"{verb}s" if len(rows) == 1 else verb


def _rows(inputs: Inputs, places: np.ndarray) -> tuple[int, ...]:
    return tuple(inputs.numbers[places[:MOST_ROWS]].tolist())


def _pair(split: str, inputs: Inputs, here: int, seen: str, before: Inputs, there: int) -> str:
    first, second = inputs.shown[here], before.shown[there]
    same = "" if first == second else f" {short(second)}"
    return (
        f"{split} row {inputs.numbers[here]} {short(first)} = {seen} row "
        f"{before.numbers[there]}{same}"
    )
