"""ROUGE by rouge-score, summed batch by batch."""

import re
from importlib import metadata
from typing import Any

from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

from hf_sft.tasks.written_metrics import StreamingTexts

KINDS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougel", "rougeLsum": "rougelsum"}
SCALARS = tuple(KINDS.values())
SENTENCE = re.compile(r"(?<=[.!?])\s+")


class StreamingSummarization(StreamingTexts):
    """ROUGE-1, -2, -L and -Lsum: the mean over texts of F1 = 2·P·R / (P + R), 0 to 100.

    P and R are the shares of the hypothesis's and of the reference's words (1), pairs of words (2)
    or longest common subsequence (L) that both have (Lin 2004). Lsum takes the union of the
    subsequences over sentences, split here after ``.``, ``!`` and ``?``. Words are runs of a-z and
    0-9, as in Google's rouge-score: for a language in another script it finds none.
    Four sums are kept, whatever the number of texts.
    """

    def __init__(
        self, processor: Any, rows: Dataset | None, columns: tuple[str, str], stem: bool = True
    ):
        self.stem, self.scorer = stem, RougeScorer(list(KINDS), use_stemmer=stem)
        super().__init__(processor, rows, columns)

    def reset(self) -> None:
        self.sums, self.count = dict.fromkeys(KINDS, 0.0), 0

    def add(self, hypotheses: list[str], references: list[str]) -> None:
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found = self.scorer.score(sentences(reference), sentences(hypothesis))
            for kind in KINDS:
                self.sums[kind] += found[kind].fmeasure
            self.count += 1

    def scores(self) -> dict[str, float]:
        return {name: 100 * self.sums[kind] / self.count for kind, name in KINDS.items()}

    def signatures(self) -> list[dict[str, str]]:
        stemmer = "Porter stemmer" if self.stem else "no stemmer"
        version = metadata.version("rouge-score")
        said = f"rouge-score {version}, {stemmer}, mean F1, sentences end at . ! ? or a line's end"
        return [{"metric": "rouge", "signature": said}]


def sentences(text: str) -> str:
    """One sentence per line, as ROUGE-Lsum wants them."""
    return "\n".join(part for part in SENTENCE.split(text.strip()) if part)
