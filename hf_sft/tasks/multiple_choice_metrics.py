"""Accuracy of chosen endings, and which places are chosen."""

from typing import Any

import numpy as np
import torch

from hf_sft.errors import DataError
from hf_sft.tasks.surprises import Surprises


class StreamingChoices:
    """Trainer's ``compute_metrics``: counts alone are kept, and the most confident mistakes.

    ``tables["endings"]``: by the place of the right ending, how often it was chosen; a model that
    prefers one place whatever stands there shows in ``chosen``. ``surprises``: of each mistake
    the number of the right ending, of the chosen one, and its probability.
    """

    def __init__(self, endings: list[str]):
        self.endings = endings
        self.tables: dict[str, Any] = {}
        self.wrong, self.surprises = Surprises(lambda *said: [x.item() for x in said]), []
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
        right = torch.as_tensor(batch.label_ids, device=logits.device)
        shares, chosen = logits.softmax(-1).max(-1)
        self.wrong.add(shares * (chosen != right), right, chosen, shares)
        np.add.at(self.counts, (right.cpu().numpy(), chosen.cpu().numpy()), 1)
        if not compute_result:
            return {}
        self.surprises = self.wrong.told()
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
