"""Accuracy of chosen endings, and which places are chosen."""

from typing import Any

import numpy as np
import torch

from hf_sft.errors import DataError


class StreamingChoices:
    """Trainer's ``compute_metrics``: counts alone are kept.

    ``tables["endings"]``: by the place of the right ending, how often it was chosen; a model that
    prefers one place whatever stands there shows in ``chosen``.
    """

    def __init__(self, endings: list[str]):
        self.endings = endings
        self.tables: dict[str, Any] = {}
        self.counts = np.zeros((len(endings), len(endings)), dtype=np.int64)  # right × chosen

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of logits (rows, endings) and labels (rows,)."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        logits = torch.as_tensor(logits).float()
        if not logits.isfinite().all():
            raise DataError(
                "The model's outputs are not finite: training has diverged. Lower "
                "training.learning_rate and start anew with --overwrite."
            )
        right = torch.as_tensor(batch.label_ids).cpu().numpy()
        np.add.at(self.counts, (right, logits.argmax(-1).cpu().numpy()), 1)
        if not compute_result:
            return {}
        counts, self.counts = self.counts, np.zeros_like(self.counts)
        self.tables = {
            "endings": [
                {
                    "ending": name,
                    "right": int(counts[i].sum()),
                    "chosen": int(counts[:, i].sum()),
                    "accuracy": float(counts[i, i] / counts[i].sum()) if counts[i].sum() else None,
                }
                for i, name in enumerate(self.endings)
            ]
        }
        return {"accuracy": float(counts.trace() / counts.sum())}
