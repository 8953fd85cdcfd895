"""Scores of one class per example, by evaluate and sklearn; imported by the first evaluation."""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

CALIBRATION_BINS = 15


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
