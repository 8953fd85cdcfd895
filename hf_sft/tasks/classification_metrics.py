"""Accuracy, F1, Matthews, calibration error of one class per example; per class, confusions."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import (
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from hf_sft.errors import DataError
from hf_sft.tasks.surprises import Surprises

CALIBRATION_BINS = 15
SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error", "matthews")


class ClassificationMetric(evaluate.Metric):
    """Single-label classification from (prediction, reference, confidence) per example.

    Calibration is the expected calibration error of Guo et al. 2017 (arXiv 1706.04599):
    ECE = Σ_b |B_b|/n · |acc(B_b) − conf(B_b)| over 15 bins of equal width.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": "int32", "references": "int32", "confidences": "float32"}
        return evaluate.MetricInfo(
            description="Single-label classification.",
            citation="",
            inputs_description="Class numbers, and the probability of the predicted class.",
            features=datasets.Features({k: datasets.Value(v) for k, v in features.items()}),
        )

    def _compute(self, predictions, references, confidences, names: list[str]) -> dict[str, Any]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        classes = range(len(names))
        precision, recall, f1, support = precision_recall_fscore_support(
            references, predictions, labels=classes, zero_division=0
        )
        correct = predictions == references
        return {
            "accuracy": float(correct.mean()),
            "balanced_accuracy": float(recall[support > 0].mean()),
            "macro_f1": float(f1[(support > 0) | np.isin(classes, predictions)].mean()),
            "calibration_error": calibration_error(np.asarray(confidences), correct),
            "matthews": float(matthews_corrcoef(references, predictions)),
            "per_class": [
                {
                    "label": n,
                    "precision": float(p),
                    "recall": float(r),
                    "f1": float(f),
                    "count": int(s),
                }
                for n, p, r, f, s in zip(names, precision, recall, f1, support, strict=True)
            ],
            "confusion_matrix": confusion_matrix(references, predictions, labels=classes).tolist(),
        }


def calibration_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """ECE over 15 equal bins; both arguments of shape (examples,)."""
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=correct - confidences, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidences))


class StreamingClassification:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps 3 numbers per example.

    The numbers that are no scalars (``per_class``, ``confusion_matrix``) are left in ``tables``
    after each evaluation, so that logs hold scalars only, and the most confident mistakes in
    ``surprises``. ``positive``: the class whose F1 is a scalar too, as ``f1``.
    """

    def __init__(self, names: list[str], positive: str | None = None):
        self.names, self.positive = names, positive
        self.metric = ClassificationMetric(keep_in_memory=True)
        self.tables: dict[str, Any] = {}
        self.wrong, self.surprises = Surprises(self._caption), []

    def _caption(self, said: Any, sure: Any, true: Any) -> str:
        return f"{self.names[true]}, taken for {self.names[said]} ({sure:.2f})"

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of logits (batch, classes) and labels (batch,)."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        probabilities = torch.as_tensor(logits).float().softmax(-1)
        refuse_diverged(probabilities)
        confidences, predictions = probabilities.max(-1)
        labels = torch.as_tensor(batch.label_ids, device=predictions.device)
        mistaken = confidences * (predictions != labels)
        self.wrong.add(mistaken, predictions, confidences, labels)
        self.metric.add_batch(
            predictions=predictions.cpu().numpy(),
            references=labels.cpu().numpy(),
            confidences=confidences.cpu().numpy(),
        )
        if not compute_result:
            return {}
        result = self.metric.compute(names=self.names)
        self.surprises = self.wrong.told()
        self.tables = {key: result.pop(key) for key in ("per_class", "confusion_matrix")}
        if self.positive is not None:
            result["f1"] = self.tables["per_class"][self.names.index(self.positive)]["f1"]
        return result


def refuse_diverged(outputs: torch.Tensor) -> None:
    """A model whose outputs are not finite cannot be measured.

    Raises:
        DataError: they are not.
    """
    if not outputs.isfinite().all():
        raise DataError(
            "The model's outputs are not finite: training has diverged. Lower "
            "training.learning_rate and start anew with --overwrite."
        )
