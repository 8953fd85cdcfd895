"""What a model says of sentences: a tag for every word, and the entities that they spell."""

import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from hf_sft.tasks import tag_schemes
from hf_sft.tasks.tag_schemes import OUTSIDE, Scheme
from hf_sft.tasks.word_windows import Windows

Answers = dict[int, tuple[int, float]]  # word -> its tag's number, and the probability of it
Places = list[tuple[int, int]]  # (start, end) of every word among the characters


@torch.no_grad()
def answers(
    windows: Windows, count: int, model: Any, collate: Callable, size: int
) -> list[Answers]:
    """The likeliest tag of every word of ``count`` sentences, at its first token.

    Args:
        windows: encoded sentences.
        model: in eval mode.
        collate: the collator of training; ``size`` windows make a batch.
    """
    found: list[Answers] = [{} for _ in range(count)]
    owners = iter(windows.sentences)
    rows = Dataset.from_dict({**windows.columns, "labels": windows.words})
    for batch in DataLoader(rows, size, collate_fn=collate):
        numbers = batch.pop("labels")
        logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
        scores, tags = logits.float().softmax(-1).max(-1)
        for words, *said in zip(numbers, tags.cpu(), scores.cpu(), strict=True):
            at, sentence = words >= 0, found[next(owners)]
            word_tags = zip(*(column[at].tolist() for column in said), strict=True)
            sentence.update(zip(words[at].tolist(), word_tags, strict=True))
    return found


def joined(words: list[str]) -> tuple[str, Places]:
    """The words as one text with spaces between, and where each of them stands."""
    places, end = [], -1
    for word in words:
        start = end + 1
        end = start + len(word)
        places.append((start, end))
    return " ".join(words), places


def entities(
    text: str, places: Places, said: Answers, names: list[str], scheme: Scheme
) -> Iterator[dict[str, Any]]:
    """``text``, ``type``, ``start``, ``end`` and ``score`` of each entity, the mean over its words.

    As ``pipeline`` puts words together with ``aggregation_strategy="first"``. Of tags that mean no
    entities, every word by itself.
    """
    tags = word_tags(len(places), said, names)
    for kind, first, last in tag_schemes.spans(tags, scheme):
        if first not in said:  # no scheme, and the tokenizer has made nothing of this word
            continue
        start, end = places[first][0], places[last - 1][1]
        score = sum(said[word][1] for word in range(first, last)) / (last - first)
        yield {"text": text[start:end], "type": kind, "start": start, "end": end, "score": score}


def word_tags(count: int, said: Answers, names: list[str]) -> list[str]:
    """One tag per word."""
    return [names[said[word][0]] if word in said else OUTSIDE for word in range(count)]


def mistakes(
    words: list[str], truth: list[str], said: list[str], scheme: Scheme
) -> dict[str, str] | None:
    """A sentence, what was missed in it and what was said in its place; None if it is all right."""
    there, found = (set(tag_schemes.spans(tags, scheme)) for tags in (truth, said))
    if there == found:
        return None
    missed, wrong = (
        ", ".join(f"{' '.join(words[a:b])} ({kind})" for kind, a, b in sorted(spans, key=_begin))
        for spans in (there - found, found - there)
    )
    sentence = textwrap.shorten(" ".join(words), 90, placeholder=" …")
    return {"sentence": sentence, "missed": missed or "–", "said wrongly": wrong or "–"}


def _begin(span: tag_schemes.Span) -> tuple[int, int]:
    return span[1:]
