"""Accuracy, F1, Matthews, calibration error of one class per example; per class, confusions."""

from functools import cached_property
from typing import Any

import torch

from hf_sft.errors import DataError
from hf_sft.tasks.surprises import Surprises

SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error", "matthews")


class StreamingClassification:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps 3 numbers per example.

    The numbers that are no scalars (``per_class``, ``confusion_matrix``) are left in ``tables``
    after each evaluation, so that logs hold scalars only, and the most confident mistakes in
    ``surprises``. ``positive``: the class whose F1 is a scalar too, as ``f1``.
    """

    def __init__(self, names: list[str], positive: str | None = None):
        self.names, self.positive = names, positive
        self.tables: dict[str, Any] = {}
        self.wrong, self.surprises = Surprises(self._caption), []

    @cached_property
    def metric(self) -> Any:
        """Imported when the first batch comes: evaluate and sklearn take a second."""
        from hf_sft.tasks.classification_scores import ClassificationMetric

        return ClassificationMetric(keep_in_memory=True)

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
