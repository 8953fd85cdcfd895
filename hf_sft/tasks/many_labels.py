"""Any number of labels: a yes or no for each, binary cross-entropy, F1 and average precision."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import DatasetDict
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hf_sft.tasks.answer import Answer
from hf_sft.tasks.classification_metrics import refuse_diverged
from hf_sft.tasks.label_lists import encode_label_lists
from hf_sft.tasks.surprises import Surprises


@dataclass(frozen=True)
class ManyLabels(Answer):
    """Labels from one column of lists, of texts with a ``separator``, or from columns of 0 and 1.

    A label is given where its probability, the sigmoid of its output, is above ``threshold``.
    """

    problem_type: ClassVar[str] = "multi_label_classification"
    metric_names: ClassVar[tuple[str, ...]] = (
        "micro_f1",
        "macro_f1",
        "mean_average_precision",
        "exact_match",
    )
    selection_metric: ClassVar[str] = "micro_f1"
    mistakes: ClassVar[str] = "largest losses"
    keys: ClassVar[tuple[str, ...]] = ("labels", "probabilities")
    columns: tuple[str, ...]
    separator: str | None = None
    threshold: float = 0.5

    @property
    def column(self) -> str:
        return self.columns[0]

    def encode(self, data: DatasetDict, keep: list | None) -> DatasetDict:
        return encode_label_lists(data, self.columns, self.separator, keep)

    def names(self, features: Any) -> list[str]:
        return features[self.column].feature.names

    def targets(self, values: list[list[int]], names: list[str]) -> list[list[float]]:
        """1 for each label of a row, else 0."""
        return [[float(label in row) for label in range(len(names))] for row in values]

    def metrics(self, names: list[str]) -> "StreamingManyLabels":
        return StreamingManyLabels(names, self.threshold)

    def records(self, logits: Tensor, names: list[str]) -> Iterator[dict]:
        """The labels above the threshold, the probabilities of all."""
        for scores in logits.float().sigmoid().tolist():
            given = dict(zip(names, scores, strict=True))
            labels = [name for name, score in given.items() if score > self.threshold]
            yield {"labels": labels, "probabilities": given}


class StreamingManyLabels:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: four counts per label, and for
    every example a score and a yes or no per label (5 bytes).

    F1 = 2·TP / (2·TP + FP + FN): micro from the counts of all labels together; macro the mean over
    the labels that occur or are given. mean_average_precision: of the labels that occur, the mean
    of sklearn's Σ_n (R_n − R_{n−1})·P_n over all thresholds n. exact_match: the share of rows whose
    labels are all right. ``surprises``: the rows with the largest loss.
    """

    def __init__(self, names: list[str], threshold: float):
        self.names, self.threshold = names, threshold
        self.tables: dict[str, Any] = {}
        self.wrong, self.surprises = Surprises(self._caption), []
        self._forget()

    def _forget(self) -> None:
        self.counts = np.zeros((len(self.names), 2, 2), dtype=np.int64)  # [label, true, given]
        self.scores: list[np.ndarray] = []
        self.truths: list[np.ndarray] = []
        self.rows, self.exact = 0, 0

    def _caption(self, scores: Any, true: Any) -> str:
        given = [f"{n} ({s:.2f})" for n, s in self._named(scores) if s > self.threshold]
        wanted = [n for n, t in self._named(true) if t]
        return f"{', '.join(wanted) or 'none'}; said: {', '.join(given) or 'none'}"

    def _named(self, values: Any) -> Iterator[tuple[str, float]]:
        return zip(self.names, values.tolist(), strict=True)

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of logits and of labels, both (batch, labels)."""
        from sklearn.metrics import multilabel_confusion_matrix

        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        logits = torch.as_tensor(logits).float()
        refuse_diverged(logits)
        labels = torch.as_tensor(batch.label_ids, device=logits.device) > 0.5
        losses = binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1)
        scores, true = logits.sigmoid(), labels.cpu().numpy()
        given = (scores > self.threshold).cpu().numpy()
        mistaken = torch.as_tensor((true != given).any(1), device=losses.device)
        self.wrong.add(losses * mistaken, scores, labels)
        self.counts += multilabel_confusion_matrix(true.astype(int), given.astype(int))
        self.scores.append(scores.cpu().numpy())
        self.truths.append(true)
        self.rows += len(true)
        self.exact += int((true == given).all(1).sum())
        return self._result() if compute_result else {}

    def _result(self) -> dict[str, float]:
        _, wrong, missed, right = self.counts.reshape(-1, 4).T
        f1 = _share(2 * right, 2 * right + wrong + missed)
        seen = right + wrong + missed > 0
        precisions = self._average_precisions()
        columns = (_share(right, right + wrong), _share(right, right + missed), f1, right + missed)
        self.tables = {
            "per_class": [
                {"label": name, "precision": p, "recall": r, "f1": f, "count": int(n)}
                for name, p, r, f, n in zip(
                    self.names, *(column.tolist() for column in columns), strict=True
                )
            ],
            "average_precision": [
                {"label": name, "average_precision": found}
                for name, found in zip(self.names, precisions, strict=True)
            ],
        }
        known = [found for found in precisions if found is not None]
        whole = 2 * right.sum()
        result = {
            "micro_f1": float(_share(whole, whole + wrong.sum() + missed.sum())),
            "macro_f1": float(f1[seen].mean()) if seen.any() else 0.0,
            "mean_average_precision": float(np.mean(known)) if known else 0.0,
            "exact_match": self.exact / max(1, self.rows),
        }
        self.surprises = self.wrong.told()
        self._forget()
        return result

    def _average_precisions(self) -> list[float | None]:
        """Of every label; None of one that does not occur."""
        from sklearn.metrics import average_precision_score

        scores, true = np.concatenate(self.scores), np.concatenate(self.truths)
        return [
            float(average_precision_score(true[:, i], scores[:, i])) if true[:, i].any() else None
            for i in range(len(self.names))
        ]


def _share(part: Any, whole: Any) -> Any:
    """part / whole, 0 where there is nothing."""
    return np.asarray(part) / np.maximum(whole, 1)
