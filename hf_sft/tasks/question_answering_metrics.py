"""Exact match and F1 of answers, by the normalisation of SQuAD, and of MLQA for other languages."""

import re
import string
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_sft.errors import DataError
from hf_sft.tasks.evaluation_order import OTHER_ORDER, refuse_other_inputs
from hf_sft.tasks.question_answering_windows import (
    Candidates,
    Collector,
    Cutter,
    Span,
    Window,
)

SHOWN, AROUND = 10, 120  # answers in the report, characters on either side of one
KEPT = ("exact", "f1", "difference", "answerable", "start", "end")  # of the best span of a row
# The articles that SQuAD's script (en) and MLQA's (the others) leave out.
ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
}
# Scripts without spaces: Han characters (as MLQA's script), and kana, count as a word each.
BY_CHARACTER = {"zh": "\u3400-\u9fff", "ja": "\u3040-\u30ff\u3400-\u9fff"}


def normalise(text: str, language: str | None = None) -> list[str]:
    """The words of an answer that are compared: small letters, no punctuation, no articles.

    English, and rows without a language: Rajpurkar et al. 2016 (arXiv 1606.05250), the scripts of
    SQuAD v1.1 and v2.0. Other languages: Lewis et al. 2020, MLQA (arXiv 1910.07475): punctuation of
    any script, its lists of articles; Chinese, and here Japanese too,
    compares character by character, numbers and Latin words whole. (XTREME scores XQuAD by
    the English rules in all languages; its numbers for German and Chinese differ from these.)
    """
    language = (language or "en").partition("-")[0]
    text = "".join(c for c in text.lower() if not _is_punctuation(c, language == "en"))
    if language in ARTICLES:
        text = re.sub(ARTICLES[language], " ", text)
    if language in BY_CHARACTER:
        text = re.sub(f"([{BY_CHARACTER[language]}])", r" \1 ", text)
    return text.split()


def _is_punctuation(character: str, ascii_only: bool) -> bool:
    if character in string.punctuation:
        return True
    return not ascii_only and unicodedata.category(character).startswith("P")


def scores(answer: str, wanted: Sequence[str], language: str | None = None) -> tuple[float, float]:
    """(Exact match, F1), each the largest over the wanted answers; none wanted means ``""``.

    F1 = 2PR/(P + R) of the words in common, each as often as both have it. Where one side has no
    words, both are 1 if the other has none either (SQuAD v2.0).
    """
    found = normalise(answer, language)
    targets = [words for text in wanted if (words := normalise(text, language))] or [[]]
    return max(float(found == words) for words in targets), max(_f1(found, w) for w in targets)


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def best_threshold(differences: np.ndarray, spans: np.ndarray, nulls: np.ndarray) -> dict:
    """The threshold with the largest mean score on these rows, as SQuAD v2.0's script finds it.

    Args:
        differences: (rows,) score of no answer minus score of the best span.
        spans, nulls: (rows,) what a row is worth with its span, and with no answer.

    Returns:
        ``threshold`` (no answer where the difference is above it) and ``score``.
    """
    order = np.argsort(differences, kind="stable")
    ordered = differences[order]
    totals = nulls.sum() + np.cumsum((spans - nulls)[order])
    last = np.append(ordered[1:] != ordered[:-1], True)  # rows with one difference go together
    thresholds = np.append(ordered[0] - 1.0, ordered[last])  # the first: no answer for any row
    totals = np.append(nulls.sum(), totals[last])
    best = int(np.argmax(totals))
    return {"threshold": float(thresholds[best]), "score": float(totals[best] / len(order))}


class StreamingSpans:
    """Trainer's ``compute_metrics`` for spans: keeps six numbers per question.

    ``worst_answers``: the lowest F1 first; of those alike, what the model was surest of: how far
    the span is ahead of no answer, or behind. The windows are cut again, in the order in which the
    batches come, to know which characters the positions of a batch stand for.

    Args:
        cutter: as the encoding used it.
        rows: one split of checked data.
        columns: what the data calls question, context, answers, language (may be missing).
        longest: tokens of an answer.
        threshold: no answer where s_null − s_span is above it; None: there is always one.
    """

    def __init__(
        self,
        cutter: Cutter,
        rows: Dataset,
        columns: dict[str, str],
        longest: int,
        threshold: float | None,
    ):
        self.cutter, self.rows, self.columns = cutter, rows, columns
        self.longest, self.threshold = longest, threshold
        self.tables: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self.windows: Iterator[Window] = self.cutter.of_rows(
            self.rows, self.columns["question"], self.columns["context"]
        )
        self.collector = Collector(1, self.longest)
        self.kept = {k: array("d") for k in KEPT}
        self.languages: list[str | None] = []  # references to a few strings

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of start and end logits, (windows, positions) each."""
        start, end = batch.predictions[:2]
        windows = list(islice(self.windows, len(start)))
        ids = [window.inputs["input_ids"] for window in windows]
        refuse_other_inputs(getattr(batch, "inputs", None), ids, self.cutter.tokenizer.pad_token_id)
        self._refuse_other_order(windows, batch.label_ids)
        for found in self.collector.add(windows, start, end):
            self._score(found)
        if not compute_result:
            return {}
        for found in self.collector.close():
            self._score(found)
        result, self.tables = self._result()
        self._begin()
        return result

    def _refuse_other_order(self, windows: list[Window], labels: Any) -> None:
        """The labels of the batch must be those of the windows that are next in line."""
        asked = list(dict.fromkeys(window.row for window in windows))
        rows = dict(zip(asked, self.rows.select(asked)[self.columns["answers"]], strict=True))
        expected = torch.tensor([w.positions(first_answer(rows[w.row])) for w in windows])
        found = torch.stack([torch.as_tensor(label).cpu() for label in labels[:2]], dim=1)
        if expected.shape != found.shape or not torch.equal(expected, found.to(expected)):
            raise DataError(OTHER_ORDER)

    def _score(self, found: Candidates) -> None:
        row = self.rows[found.row]
        best = found.best(1)
        text = row[self.columns["context"]][slice(*best[0][0])] if best else ""
        wanted, language = row[self.columns["answers"]]["text"], row.get(self.columns["language"])
        exact, f1 = scores(text, wanted, language)
        self.kept["exact"].append(exact)
        self.kept["f1"].append(f1)
        self.kept["difference"].append(found.null - best[0][1] if best else float("inf"))
        self.kept["answerable"].append(bool(wanted))
        for name, place in zip(("start", "end"), best[0][0] if best else (0, 0), strict=True):
            self.kept[name].append(place)
        self.languages.append(language)

    def _result(self) -> tuple[dict[str, float], dict[str, list[dict]]]:
        kept = {key: np.array(values) for key, values in self.kept.items()}
        span = {"exact_match": kept["exact"], "f1": kept["f1"]}
        nulls, final = 1.0 - kept["answerable"], span
        tables: dict[str, list[dict]] = {}
        if self.threshold is not None:
            silent = kept["difference"] > self.threshold
            final = {key: np.where(silent, nulls, values) for key, values in span.items()}
            groups = {"with an answer": nulls == 0, "without": nulls == 1}
            tables["questions"] = [
                _means(name, "kind", final, rows) for name, rows in groups.items()
            ]
            tables["no_answer_threshold"] = self._thresholds(kept["difference"], span, nulls, final)
        names = np.array([name or "not given" for name in self.languages])
        if any(self.languages):
            each = dict.fromkeys(names.tolist())
            tables["languages"] = [_means(n, "language", final, names == n) for n in each]
        tables["worst_answers"] = self._worst(kept, final["f1"])
        return {key: float(values.mean()) for key, values in final.items()}, tables

    def _worst(self, kept: dict[str, np.ndarray], f1: np.ndarray) -> list[dict]:
        """The wrong answers in what stands around them."""
        ahead = kept["difference"] - (self.threshold or 0.0)
        silent = np.isinf(ahead) if self.threshold is None else ahead > 0
        order = np.lexsort((-np.abs(ahead), f1))
        return [self._shown(int(row), kept, f1, silent) for row in order[:SHOWN] if f1[row] < 1]

    def _shown(self, number: int, kept: dict, f1: np.ndarray, silent: np.ndarray) -> dict:
        row = self.rows[number]
        asked = {"question": row[self.columns["question"]]}
        asked["wanted"] = " | ".join(row[self.columns["answers"]]["text"])
        place = None if silent[number] else tuple(int(kept[k][number]) for k in ("start", "end"))
        context = row[self.columns["context"]]
        return {**asked, **_in_context(context, place), "f1": float(f1[number])}

    def _thresholds(self, differences, span, nulls, final) -> list[dict]:
        """The threshold in use, and the best ones in hindsight, which is no fair score."""
        rows = [
            {"score": key, "threshold": self.threshold, "value": float(values.mean()), "is": "used"}
            for key, values in final.items()
        ]
        for key, values in span.items():
            best = best_threshold(differences, values, nulls)
            found = {"score": key, "threshold": best["threshold"], "value": best["score"]}
            rows.append({**found, "is": "best on these rows, in hindsight"})
        return rows


def first_answer(answers: dict[str, list]) -> tuple[int, int] | None:
    """The characters of the answer that training takes, the first one; None without any."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    return start, start + len(answers["text"][0])


def _in_context(context: str, place: Span | None) -> dict[str, str]:
    """An answer with what stands around it, as much as a person reads; no answer, the beginning."""
    if place is None:
        cut = " …" if len(context) > 2 * AROUND else ""
        return {"before": context[: 2 * AROUND] + cut, "answer": "", "after": ""}
    start, end = place
    before, after = context[max(0, start - AROUND) : start], context[end : end + AROUND]
    return {
        "before": ("… " if start > AROUND else "") + before,
        "answer": context[start:end],
        "after": after + (" …" if end + AROUND < len(context) else ""),
    }


def _means(name: str, key: str, values: dict[str, np.ndarray], rows: np.ndarray) -> dict:
    means = {k: float(v[rows].mean()) if rows.any() else None for k, v in values.items()}
    return {key: name, "count": int(rows.sum()), **means}
