"""What a causal model wrote against what was wanted: texts for the report, and scores of them."""

from collections.abc import Iterable
from typing import Any, Literal

from hf_sft.tasks.summarization_metrics import StreamingSummarization
from hf_sft.tasks.translation_metrics import StreamingTranslation

Score = Literal["rouge", "chrf", "bleu", "exact_match"]
SHOWN = 50
NO_COLUMNS = ("", "")


class ExactMatch:
    """100 · the share of texts that are their reference, white space at both ends apart."""

    def __init__(self) -> None:
        self.count = self.equal = 0

    def add(self, hypotheses: list[str], references: list[str]) -> None:
        """Take the texts of one batch."""
        self.count += len(references)
        for one, other in zip(hypotheses, references, strict=True):
            self.equal += one.strip() == other.strip()

    def scores(self) -> dict[str, float]:
        """The share, 0 to 100."""
        return {"exact_match": 100 * self.equal / max(1, self.count)}

    def signatures(self) -> list[dict[str, str]]:
        """What counts as equal."""
        return [{"metric": "exact_match", "signature": "case and punctuation count"}]


def answered(
    rows: Iterable[tuple[dict[str, str], str]], kinds: list[Score], tokenizer: Any
) -> dict[str, list[dict]]:
    """``generated``: the first 50 rows with their texts; ``generation``: scores of all of them.

    ``rows``: what is shown of a row, with its ``completion``, and the text written for it; they
    come one by one, and sums are kept. A row without a completion has no score.
    """
    scorers = _scorers(kinds, tokenizer)
    shown, count = [], 0
    for given, text in rows:
        if len(shown) < SHOWN:
            shown.append({**given, "generated": text})
        if given["completion"].strip():
            count += 1
            for scorer in scorers:
                scorer.add([text.strip()], [given["completion"].strip()])
    found = {"generated": shown}
    if scorers and count:
        found["generation"] = list(_table(scorers, kinds, count))
    return found


def _scorers(kinds: list[Score], tokenizer: Any) -> list[Any]:
    scorers: list[Any] = []
    if {"chrf", "bleu"} & set(kinds):
        scorers.append(StreamingTranslation(tokenizer, None, NO_COLUMNS))
    if "rouge" in kinds:
        scorers.append(StreamingSummarization(tokenizer, None, NO_COLUMNS))
    return [*scorers, ExactMatch()] if "exact_match" in kinds else scorers


def _table(scorers: list[Any], kinds: list[Score], count: int) -> Iterable[dict]:
    for scorer in scorers:
        signatures = {row["metric"]: row["signature"] for row in scorer.signatures()}
        for name, score in scorer.scores().items():
            kind = "rouge" if name.startswith("rouge") else name
            if kind in kinds:
                told = {"score": round(score, 2), "texts": count, "signature": signatures[kind]}
                yield {"metric": name, **told}
