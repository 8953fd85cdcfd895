"""Any number of labels: a yes or no for each, binary cross-entropy, micro and macro F1."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import DatasetDict
from sklearn.metrics import multilabel_confusion_matrix
from torch import Tensor

from hf_sft.tasks.answer import Answer
from hf_sft.tasks.classification_metrics import refuse_diverged
from hf_sft.tasks.label_lists import encode_label_lists


@dataclass(frozen=True)
class ManyLabels(Answer):
    """Labels from one column of lists, of texts with a ``separator``, or from columns of 0 and 1.

    A label is given where its probability, the sigmoid of its output, is above ``threshold``.
    """

    problem_type: ClassVar[str] = "multi_label_classification"
    metric_names: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "exact_match")
    selection_metric: ClassVar[str] = "micro_f1"
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
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps four counts per label.

    F1 = 2·TP / (2·TP + FP + FN): micro from the counts of all labels together; macro the mean over
    the labels that occur or are given. exact_match: the share of rows whose labels are all right.
    """

    def __init__(self, names: list[str], threshold: float):
        self.names, self.threshold = names, threshold
        self.tables: dict[str, Any] = {}
        self._forget()

    def _forget(self) -> None:
        self.counts = np.zeros((len(self.names), 2, 2), dtype=np.int64)  # [label, true, given]
        self.rows, self.exact = 0, 0

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of logits and of labels, both (batch, labels)."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        logits = torch.as_tensor(logits).float()
        refuse_diverged(logits)
        scores = logits.sigmoid()
        given = (scores > self.threshold).cpu().numpy().astype(int)
        true = (torch.as_tensor(batch.label_ids) > 0.5).cpu().numpy().astype(int)
        self.counts += multilabel_confusion_matrix(true, given)
        self.rows += len(true)
        self.exact += int((true == given).all(1).sum())
        return self._result() if compute_result else {}

    def _result(self) -> dict[str, float]:
        _, wrong, missed, right = self.counts.reshape(-1, 4).T
        f1 = _share(2 * right, 2 * right + wrong + missed)
        seen = right + wrong + missed > 0
        columns = (_share(right, right + wrong), _share(right, right + missed), f1, right + missed)
        self.tables = {
            "per_class": [
                {"label": name, "precision": p, "recall": r, "f1": f, "count": int(n)}
                for name, p, r, f, n in zip(
                    self.names, *(column.tolist() for column in columns), strict=True
                )
            ]
        }
        whole = 2 * right.sum()
        result = {
            "micro_f1": float(_share(whole, whole + wrong.sum() + missed.sum())),
            "macro_f1": float(f1[seen].mean()) if seen.any() else 0.0,
            "exact_match": self.exact / max(1, self.rows),
        }
        self._forget()
        return result


def _share(part: Any, whole: Any) -> Any:
    """part / whole, 0 where there is nothing."""
    return np.asarray(part) / np.maximum(whole, 1)
