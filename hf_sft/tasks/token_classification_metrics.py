"""Precision, recall and F1 of whole entities, accuracy of words; or the same of words alone."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from datasets import Dataset

from hf_sft.errors import DataError
from hf_sft.tasks.tag_schemes import OUTSIDE, Scheme, Span, plain, spans, type_of
from hf_sft.tasks.token_loss import TokenLoss
from hf_sft.tasks.word_windows import IGNORED

log = logging.getLogger(__name__)

SCALARS = ("f1", "precision", "recall", "macro_f1", "accuracy", "lenient_f1")
READERS = {"BIO": "IOB2", "BIOES": "IOBES", "BILOU": "IOBES", "IO": "IOB1"}
NOT_FINITE = -1  # what `first_answers` gives for logits that no softmax takes

Tags = list[str]


def first_answers(logits: torch.Tensor) -> torch.Tensor:
    """(batch, positions): the number of the likeliest tag, -1 where the logits are not finite."""
    best = logits.argmax(-1)
    return best.masked_fill(~logits.isfinite().all(-1), NOT_FINITE)


class Counts:
    """How many things of each type are there, were said, and were said where they are.

    Precision = right/said, recall = right/there, F1 = 2·right/(said + there); micro: of the sums;
    macro: the mean over the types that are there or were said. 0 for 0/0.
    """

    def __init__(self) -> None:
        self.right, self.said, self.there = Counter(), Counter(), Counter()

    def add(self, truth: Iterable[tuple], answers: Iterable[tuple]) -> None:
        """Things of one batch, each a tuple with its type in front."""
        truth, answers = set(truth), set(answers)
        for counter, things in ((self.there, truth), (self.said, answers)):
            counter.update(thing[0] for thing in things)
        self.right.update(thing[0] for thing in truth & answers)

    def scores(self, kinds: Iterable[str] | None = None) -> tuple[float, float, float]:
        """(precision, recall, F1) over these types, or over all."""
        kinds = [*(self.there | self.said)] if kinds is None else list(kinds)
        right, said, there = (sum(c[k] for k in kinds) for c in (self.right, self.said, self.there))
        return right / max(said, 1), right / max(there, 1), 2 * right / max(said + there, 1)

    def macro(self) -> float:
        """Mean F1 of the types that are there or were said."""
        found = [self.scores([kind])[2] for kind in sorted(self.there | self.said)]
        return sum(found) / max(len(found), 1)

    def rows(self, kinds: Iterable[str]) -> Iterator[dict[str, Any]]:
        """A row of the table of classes for each type."""
        for kind in kinds:
            scores = zip(("precision", "recall", "f1"), self.scores([kind]), strict=True)
            yield {"label": kind, **dict(scores), "count": self.there[kind]}


class StreamingTags:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``; keeps counts only.

    ``precision``, ``recall``, ``f1`` (micro) and ``macro_f1`` are of whole entities, type and both
    ends right, read strictly: what breaks the scheme in the answers is no entity (seqeval, mode
    strict). ``lenient_f1`` reads them as conlleval and ``pipeline`` do: an I-X after O begins one.
    ``accuracy`` is of words, and ``loss`` their mean. Tags that mean no entities count word by
    word, and then micro F1, precision and recall are the accuracy.

    Args:
        names: the tags in the order of the head's outputs.
        rows: checked sentences in the order of the batches, to put together the windows of long
            ones; without them each window is a sentence.
    """

    def __init__(self, names: list[str], scheme: Scheme, rows: Dataset | None, tags: str):
        self.names, self.scheme = names, scheme
        kinds = dict.fromkeys(type_of(name, scheme) for name in names)
        self.kinds = [kind for kind in kinds if kind != OUTSIDE or scheme == "none"]
        self.rows = None if rows is None or tags not in rows.column_names else rows
        self.tags = tags
        self.tables: dict[str, Any] = {}
        self.loss = TokenLoss()
        self._start()

    def _start(self) -> None:
        self.strict, self.lenient = Counts(), Counts()
        self.words = self.right = self.sentence = self.windows = 0
        self.in_order = self.rows is not None
        self.truth: list[int] = []  # of the sentence that is not whole yet
        self.answers: list[int] = []

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of answers and labels (batch, positions); -100 is no word."""
        labels, answers = torch.as_tensor(batch.label_ids), torch.as_tensor(batch.predictions)
        self.loss.add(batch)
        whole = []
        for truth, said in zip(labels.cpu(), answers.cpu(), strict=True):
            at = truth != IGNORED
            whole += self._join(truth[at].tolist(), said[at].tolist())
        if compute_result:
            whole += self._rest()
        self._count(whole)
        return self._result() if compute_result else {}

    def _join(self, truth: list[int], answers: list[int]) -> Iterator[tuple[list, list]]:
        """The sentences that this window makes whole."""
        self.windows += 1
        if self.in_order:
            wanted = self.rows[self.sentence][self.tags] if self.sentence < len(self.rows) else []
            begin = len(self.truth)
            if truth and wanted[begin : begin + len(truth)] == truth:
                self.truth, self.answers = self.truth + truth, self.answers + answers
                if len(self.truth) == len(wanted):
                    yield from self._rest()
                    self.sentence += 1
                return
            self.in_order = False  # sorted by length: no telling what belongs together
            yield from self._rest()
        yield truth, answers

    def _rest(self) -> Iterator[tuple[list, list]]:
        if self.truth:
            yield self.truth, self.answers
        self.truth, self.answers = [], []

    def _count(self, sentences: list[tuple[list, list]]) -> None:
        if any(NOT_FINITE in answers for _, answers in sentences):
            raise DataError(
                "The model's outputs are not finite: training has diverged. Lower "
                "training.learning_rate and start anew with --overwrite."
            )
        pairs = [[self._named(tags) for tags in sentence] for sentence in sentences]
        for truth, answers in pairs:
            self.words += len(truth)
            self.right += sum(map(str.__eq__, truth, answers))
        both = list(zip(*pairs, strict=True)) or [(), ()]
        self.strict.add(*(self._entities(tags) for tags in both))
        self.lenient.add(*(_numbered(spans(t, self.scheme) for t in tags) for tags in both))

    def _named(self, tags: list[int]) -> Tags:
        return [self.names[tag] for tag in tags]

    def _entities(self, sentences: Iterable[Tags]) -> Iterator[tuple]:
        """(type, sentence, first word, end) of what seqeval takes for an entity in mode strict."""
        if self.scheme == "none":
            return _numbered(spans(tags, self.scheme) for tags in sentences)
        from seqeval import scheme as seqeval_schemes

        reader = getattr(seqeval_schemes, READERS[self.scheme])
        found = seqeval_schemes.Entities(
            [plain(tags, self.scheme) for tags in sentences], reader
        ).entities
        return ((e.tag, e.sent_id, e.start, e.end) for sentence in found for e in sentence)

    def _result(self) -> dict[str, float]:
        precision, recall, f1 = self.strict.scores()
        result = {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "macro_f1": self.strict.macro(),
            "accuracy": self.right / max(self.words, 1),
            "lenient_f1": self.lenient.scores()[2],
            **self.loss.result(),
        }
        if not self.in_order and self.rows is not None and self.windows > len(self.rows):
            log.warning(
                "Entities of long sentences were counted window by window: group_by_length mixes "
                "the windows. `hf-sft evaluate` puts them together."
            )
        self.tables = {"per_class": list(self.strict.rows(self.kinds))}
        self._start()
        return result


def _numbered(sentences: Iterable[list[Span]]) -> Iterator[tuple]:
    return ((kind, i, *place) for i, found in enumerate(sentences) for kind, *place in found)
