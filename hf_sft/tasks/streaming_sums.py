"""Metrics that are functions of sums over rows: exact for any batches, in memory that is flat."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch

from hf_sft.errors import DataError


class StreamingSums(ABC):
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps a sum per column.

    Raises:
        DataError: the first sum is not finite, as the model's outputs are not.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self._begin()

    def _begin(self) -> None:
        self._sums, self._rows = torch.zeros(1, dtype=torch.float64), 0

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take the numbers of one batch, (rows, columns), as the task's ``summary`` gives them."""
        found = torch.as_tensor(batch.predictions).cpu().double()
        self._sums, self._rows = self._sums + found.sum(0), self._rows + len(found)
        if not compute_result:
            return {}
        sums, rows = self._sums.tolist(), self._rows
        self._begin()
        if not math.isfinite(sums[0]):
            raise DataError(
                "The model's outputs are not finite: training has diverged. Lower "
                "training.learning_rate and start anew with --overwrite."
            )
        return self.scores(sums, rows)

    @abstractmethod
    def scores(self, sums: list[float], rows: int) -> dict[str, float]:
        """The metrics, of the sums of all columns and the number of rows."""
