"""ROUGE by rouge-score, summed batch by batch."""

import re
from importlib import metadata
from typing import Any

from datasets import Dataset

from hf_sft.tasks.scripts import foreign_share, words
from hf_sft.tasks.written_metrics import Reads, StreamingTexts

KINDS = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rougel", "rougeLsum": "rougelsum"}
SCALARS = tuple(KINDS.values())
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।؟])")
SOME = 0.01  # letters that rouge-score does not know: told from here on


class _AllScripts:
    """What RougeScorer takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


class StreamingSummarization(StreamingTexts):
    """ROUGE-1, -2, -L and -Lsum: the mean over texts of F1 = 2·P·R / (P + R), 0 to 100.

    P and R are the shares of the hypothesis's and of the reference's words (1), pairs of words (2)
    or longest common subsequence (L) that both have (Lin 2004). Lsum takes the union of the
    subsequences over sentences, split here after ``.``, ``!`` and ``?``. Words are runs of a-z and
    0-9, as in Google's rouge-score, which finds none in another script; or of the letters of every
    script (`scripts.words`), never stemmed. Four sums are kept, whatever the number of texts.

    Args:
        stem: compare Porter's stems.
        words: ``rouge``, ``unicode``; None: unicode where most letters of the targets are not a-z.
    """

    judged_by = "rougel"

    def __init__(
        self,
        processor: Any,
        rows: Dataset | None,
        columns: tuple[str, str],
        stem: bool = True,
        words: str | None = None,
        reads: Reads | None = None,
    ):
        from rouge_score.rouge_scorer import RougeScorer

        self.foreign = 0.0 if rows is None else foreign_share(rows[columns[1]])
        self.unicode = words == "unicode" or (words is None and self.foreign > 0.5)
        self.stem = stem and not self.unicode
        tokenizer = _AllScripts() if self.unicode else None
        self.scorer = RougeScorer(list(KINDS), use_stemmer=self.stem, tokenizer=tokenizer)
        super().__init__(processor, rows, columns, reads)

    def reset(self) -> None:
        self.sums, self.count = dict.fromkeys(KINDS, 0.0), 0

    def add(self, hypotheses: list[str], references: list[str]) -> list[float]:
        each = []
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found = self.scorer.score(sentences(reference), sentences(hypothesis))
            for kind in KINDS:
                self.sums[kind] += found[kind].fmeasure
            each.append(100 * found["rougeL"].fmeasure)
            self.count += 1
        return each

    def scores(self) -> dict[str, float]:
        return {name: 100 * self.sums[kind] / self.count for kind, name in KINDS.items()}

    def signatures(self) -> list[dict[str, str]]:
        stemmer = "Porter stemmer" if self.stem else "no stemmer"
        version = metadata.version("rouge-score")
        said = f"rouge-score {version}, {stemmer}, mean F1, sentences end at . ! ? or a line's end"
        if self.unicode:
            said += ", words of letters and digits of every script, singly where it has no spaces"
        elif self.foreign > SOME:
            said += f", words of a-z and 0-9: {self.foreign:.0%} of the letters are others, and "
            said += "part words (task.tokenize: unicode keeps them)"
        return [{"metric": "rouge", "signature": said}]


def sentences(text: str) -> str:
    """One sentence per line, as ROUGE-Lsum wants them."""
    return "\n".join(part for part in SENTENCE.split(text.strip()) if part)
