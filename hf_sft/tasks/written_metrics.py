"""Scores of written texts, batch by batch: what BLEU, chrF and ROUGE have in common here."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset

from hf_sft.tasks.evaluation_order import refuse_other_inputs
from hf_sft.tasks.token_loss import TokenLoss

SHOWN, MOST_CHARACTERS = 10, 400
Reads = Callable[[Sequence[str]], list[list[int]]]


class StreamingTexts:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``, on ids that ``generate`` wrote.

    A batch is decoded, scored and let go of: sums are kept, and the 10 worst texts for the report.
    References are the targets of ``rows`` as they are in the data, not what was cut or unknown to
    the tokenizer; ``rows`` come in order, which ``reads`` shows. What a last batch repeats of the
    first rows, so that all processes have as many, is left out. ``loss`` is the mean over all
    tokens of targets.

    Args:
        processor: the tokenizer.
        rows: the evaluated split, with the texts; None reads references from the labels.
        columns: its source and target.
        reads: sources -> the ids that the model is given of them; None: not compared.

    Attributes:
        judged_by: the score by which a text alone is called bad.

    Raises:
        DataError: a batch was made of other rows than those that are next in line.
    """

    judged_by: ClassVar[str]

    def __init__(
        self,
        processor: Any,
        rows: Dataset | None,
        columns: tuple[str, str],
        reads: Reads | None = None,
    ):
        self.processor, self.rows, self.columns, self.reads = processor, rows, columns, reads
        self.tables: dict[str, Any] = {}
        self.loss = TokenLoss(filler=getattr(processor, "pad_token_id", None))
        self._begin()

    def _begin(self) -> None:
        self.seen, self.examples = 0, []
        self.reset()

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take the ids (batch, positions) written, and the labels (batch, positions)."""
        self.loss.add(batch)
        hypotheses = self._texts(batch.predictions)
        if self.rows is None:
            references = self._texts(batch.label_ids)
            sources = [""] * len(references)
        else:
            part = self.rows[self.seen : self.seen + len(hypotheses)]
            sources, references = (part[column] for column in self.columns)
            self._refuse_other_order(batch, sources)
        hypotheses = hypotheses[: len(references)]
        self.seen += len(references)
        if hypotheses:
            each = self.add(hypotheses, references)
            self._keep_worst(zip(sources, references, hypotheses, strict=True), each)
        if not compute_result:
            return {}
        found = self.scores() | self.loss.result()
        self.tables = {"signature": self.signatures(), "worst_examples": self.examples}
        self._begin()
        return found

    def _refuse_other_order(self, batch: Any, sources: list[str]) -> None:
        given = getattr(batch, "inputs", None)
        if self.reads is not None and given is not None:
            refuse_other_inputs(given, self.reads(sources), self.processor.pad_token_id)

    def _keep_worst(self, texts: Iterable[tuple[str, str, str]], each: list[float]) -> None:
        names = ("source", "reference", "hypothesis")
        for told, score in zip(texts, each, strict=True):
            shown = dict(zip(names, map(_short, told), strict=True))
            self.examples.append({**shown, self.judged_by: score})
        self.examples = sorted(self.examples, key=lambda row: row[self.judged_by])[:SHOWN]

    def _texts(self, ids: Any) -> list[str]:
        ids = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
        ids = np.where(ids < 0, self.processor.pad_token_id, ids)
        found = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in found]

    @abstractmethod
    def reset(self) -> None:
        """Forget all sums."""

    @abstractmethod
    def add(self, hypotheses: list[str], references: list[str]) -> list[float]:
        """Take the texts of one batch; each one's own ``judged_by``, 0 to 100."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """The scores of all texts, 0 to 100."""

    @abstractmethod
    def signatures(self) -> list[dict[str, str]]:
        """What another must set to get the same numbers."""


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"
