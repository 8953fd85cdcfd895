"""Sentences of words as windows of tokens: every word has one place, its first token's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_sft.errors import DataError, SourceError

IGNORED = -100  # the label of a position that is no word's


@dataclass(frozen=True)
class Windows:
    """Encoded windows, those of a sentence one after the other.

    Attributes:
        columns: what the tokenizer gives (``input_ids``, …), one list per window.
        sentences: which sentence each window is of.
        words: per window and position, the number of the word that begins there, else -100.
    """

    columns: dict[str, list]
    sentences: list[int]
    words: list[list[int]]


def settle_words(tokenizer: Any) -> None:
    """A word has the tokens it has inside a text, also where it is the first.

    Raises:
        SourceError: the tokenizer cannot say which tokens a word has become.
    """
    if not tokenizer.is_fast:
        raise SourceError(
            "model.name: this tokenizer cannot say which tokens a word has become. Name a source "
            "with a fast one (tokenizer.json)."
        )
    before = tokenizer.backend_tokenizer.pre_tokenizer
    if getattr(before, "add_prefix_space", None) is False:  # GPT-2, RoBERTa: " oak" and "oak"
        before.add_prefix_space = True
        tokenizer.add_prefix_space = True


def word_windows(tokenizer: Any, sentences: list[list[str]], limit: int | None) -> Windows:
    """Every word of every sentence begins in just one window, words in order.

    A sentence of more than ``limit`` tokens takes several windows; a quarter of each repeats the
    end of the one before, so that its words have something to their left. A word that the
    tokenizer makes nothing of (a control character) stands as its unknown token.

    Raises:
        DataError: there is no unknown token, and a word that becomes nothing.
    """
    found = _cut(tokenizer, sentences, limit, is_split_into_words=True)
    lost = _lost(found, sentences)
    if not lost:
        return found
    if tokenizer.unk_token is None:
        sentence, word = lost[0]
        raise DataError(
            f"the tokenizer makes nothing of the word {sentences[sentence][word]!r}. Replace it."
        )
    whole = [list(words) for words in sentences]
    for sentence, word in lost:
        whole[sentence][word] = tokenizer.unk_token
    return _cut(tokenizer, whole, limit, is_split_into_words=True)


def text_windows(
    tokenizer: Any, texts: list[str], limit: int | None
) -> tuple[Windows, list[list[tuple[int, int]]]]:
    """Windows of raw texts whose words are the tokenizer's own; and every word's (start, end).

    Of WordPiece, words as ``pipeline`` takes them: parted by spaces and around punctuation.
    """
    whole = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    places = []
    for i, offsets in enumerate(whole["offset_mapping"]):
        ends: dict[int, tuple[int, int]] = {}
        for word, (start, end) in zip(whole.word_ids(i), offsets, strict=True):
            first, last = ends.get(word, (start, end))
            ends[word] = (start if first == last else min(first, start), max(last, end))
        count = max(ends, default=-1) + 1
        places.append([_trimmed(texts[i], *ends.get(word, (0, 0))) for word in range(count)])
    return _cut(tokenizer, texts, limit), places


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the space that some tokenizers count to the word after it."""
    return start + len(text[start:end]) - len(text[start:end].lstrip()), end


def _cut(tokenizer: Any, given: list, limit: int | None, **how: Any) -> Windows:
    cutting = {"truncation": True, "max_length": limit, "stride": (limit or 0) // 4}
    found = tokenizer(
        given, return_overflowing_tokens=True, verbose=False, **how, **(cutting if limit else {})
    )
    owners = found.pop("overflow_to_sample_mapping", range(len(given)))
    ids = [found.word_ids(i) for i in range(len(owners))]
    order = sorted(range(len(owners)), key=lambda i: (owners[i], _first(ids[i])))
    kept, words, seen = [], [], [-1] * len(given)  # the last word that has its place already
    for i in order:
        places = []
        for word in ids[i]:
            fresh = word is not None and word > seen[owners[i]]
            places.append(word if fresh else IGNORED)
            seen[owners[i]] = word if fresh else seen[owners[i]]
        if any(place != IGNORED for place in places):  # else the rest of one long word
            kept.append(i)
            words.append(places)
    columns = {key: [values[i] for i in kept] for key, values in found.items()}
    return Windows(columns, [owners[i] for i in kept], words)


def _first(words: Sequence[int | None]) -> int:
    return min((word for word in words if word is not None), default=0)


def _lost(found: Windows, sentences: list[list[str]]) -> list[tuple[int, int]]:
    """(sentence, word) of the words that begin nowhere."""
    there = {
        (sentence, word)
        for sentence, words in zip(found.sentences, found.words, strict=True)
        for word in words
        if word != IGNORED
    }
    wanted = ((s, w) for s, words in enumerate(sentences) for w in range(len(words)))
    return [place for place in wanted if place not in there]
