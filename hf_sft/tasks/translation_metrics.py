"""BLEU and chrF by sacreBLEU, summed batch by batch."""

from typing import Any

import numpy as np
from datasets import Dataset

from hf_sft.tasks.written_metrics import Reads, StreamingTexts

SCALARS = ("chrf", "bleu")


class StreamingTranslation(StreamingTexts):
    """BLEU and chrF of a corpus, 0 to 100, as ``sacrebleu`` prints them.

    BLEU = BP · exp(Σ_n log p_n / 4): p_n the share of the written n-grams that the reference has,
    BP = min(1, exp(1 − length of references / length of hypotheses)) (Papineni et al. 2002; Post
    2018, arXiv 1804.08771). chrF = (1 + β²)·P·R / (β²·P + R) of character n-grams up to 6, β = 2
    (Popović 2015). Both are functions of counts that add up: 10 and 18 numbers are kept in all,
    the same as the corpus score of all texts at once.
    """

    judged_by = "chrf"

    def __init__(
        self,
        processor: Any,
        rows: Dataset | None,
        columns: tuple[str, str],
        tokenize: str = "13a",
        reads: Reads | None = None,
    ):
        from sacrebleu.metrics import BLEU, CHRF

        # sacreBLEU 2: the counts of a text are behind an underscore; one test compares with
        # corpus_score. force: no warning about tokenized texts, which a small model writes.
        self.metrics = {"chrf": CHRF(), "bleu": BLEU(tokenize=tokenize, force=True)}
        super().__init__(processor, rows, columns, reads)

    def reset(self) -> None:
        self.counts: dict[str, np.ndarray] = {}

    def add(self, hypotheses: list[str], references: list[str]) -> list[float]:
        each: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            each[name] = metric._extract_corpus_statistics(hypotheses, [references])
            total = np.asarray(each[name]).sum(0)
            self.counts[name] = self.counts.get(name, 0) + total
        judge = self.metrics[self.judged_by]
        rows = np.asarray(each[self.judged_by]).tolist()
        return [float(judge._aggregate_and_compute([row]).score) for row in rows]

    def scores(self) -> dict[str, float]:
        return {
            name: float(metric._aggregate_and_compute([self.counts[name].tolist()]).score)
            for name, metric in self.metrics.items()
        }

    def signatures(self) -> list[dict[str, str]]:
        return [
            {"metric": name, "signature": str(metric.get_signature())}
            for name, metric in self.metrics.items()
        ]
