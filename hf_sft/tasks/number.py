"""A number: its errors, R², Pearson's and Spearman's correlation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Value
from torch import Tensor

from hf_sft.errors import DataError
from hf_sft.tasks.answer import Answer
from hf_sft.tasks.classification_metrics import refuse_diverged
from hf_sft.tasks.labels import first_few
from hf_sft.tasks.number_scale import far_from_one
from hf_sft.tasks.surprises import Surprises


@dataclass(frozen=True)
class Number(Answer):
    """``column`` holds numbers; the model has one output, named like the column."""

    problem_type: ClassVar[str] = "regression"
    metric_names: ClassVar[tuple[str, ...]] = ("spearman", "pearson", "r2", "mae", "rmse", "mse")
    selection_metric: ClassVar[str] = "spearman"
    lower_is_better: ClassVar[tuple[str, ...]] = ("mae", "rmse", "mse")
    mistakes: ClassVar[str] = "largest errors"
    keys: ClassVar[tuple[str, ...]] = ("value",)
    column: str

    def encode(self, data: DatasetDict, keep: list | None) -> DatasetDict:
        if keep is not None:
            raise DataError("data.keep_labels: numbers have no classes. Leave the key out.")
        found = {split: [number_of(v) for v in rows[self.column]] for split, rows in data.items()}
        if problems := [
            line for s, rows in data.items() for line in _problems(rows, self.column, found[s], s)
        ]:
            raise DataError("\n".join(problems))
        return DatasetDict({s: _with(rows, self.column, found[s]) for s, rows in data.items()})

    def names(self, features: Any) -> list[str]:
        return [self.column]

    def configure(self, config: Any, names: list[str]) -> None:
        super().configure(config, names[:1])

    def doubt(self, rows: Dataset) -> str | None:
        return far_from_one(self.column, rows[self.column][:])

    def metrics(self, names: list[str]) -> "StreamingNumbers":
        return StreamingNumbers()

    def records(self, logits: Tensor, names: list[str]) -> Iterator[dict]:
        yield from ({"value": value} for (value,) in logits.float().tolist())


class StreamingNumbers:
    """Trainer's ``compute_metrics`` under ``batch_eval_metrics``: keeps two numbers per example.

    mae = mean |ŷ − y|, rmse = √mse, r2 = 1 − Σ(ŷ − y)² / Σ(y − mean y)². Correlations of numbers
    that are all the same, and R² of such labels, are not defined: nan. ``surprises``: the rows with
    the largest errors.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.wrong, self.surprises = (
            Surprises(lambda said, true: f"{true:.4g}, taken for {said:.4g}"),
            [],
        )
        self.pairs: list[np.ndarray] = []

    def __call__(self, batch: Any, compute_result: bool) -> dict[str, float]:
        """Take one batch of outputs (batch, 1) and numbers (batch,)."""
        logits = batch.predictions[0] if isinstance(batch.predictions, tuple) else batch.predictions
        given = torch.as_tensor(logits).float().reshape(-1)
        refuse_diverged(given)
        true = torch.as_tensor(batch.label_ids, device=given.device).float().reshape(-1)
        self.wrong.add((given - true).abs(), given, true)
        self.pairs.append(np.stack([given.cpu().numpy(), true.cpu().numpy()]))
        return self._result() if compute_result else {}

    def _result(self) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

        (given, true), self.pairs = np.concatenate(self.pairs, axis=1).astype(np.float64), []
        self.surprises = self.wrong.told()
        varied = len(true) > 1 and np.ptp(true) > 0
        defined = varied and np.ptp(given) > 0
        mse = float(mean_squared_error(true, given))
        return {
            "spearman": float(spearmanr(given, true).statistic) if defined else math.nan,
            "pearson": float(pearsonr(given, true).statistic) if defined else math.nan,
            "r2": float(r2_score(true, given)) if varied else math.nan,
            "mae": float(mean_absolute_error(true, given)),
            "rmse": math.sqrt(mse),
            "mse": mse,
        }


def number_of(value: Any) -> float | None:
    """None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _problems(rows: Dataset, column: str, numbers: list[float | None], split: str) -> list[str]:
    bad = [
        f"row {i}: {column!r} is {value!r}, no number. Correct or remove the row."
        for i, (value, number) in enumerate(zip(rows[column], numbers, strict=True), 1)
        if number is None
    ]
    if not bad and split == "train" and len(set(numbers)) == 1:
        return [f"data.train: {column!r} is {numbers[0]:g} in every row; nothing can be learnt."]
    return first_few(f"data.{split}", bad)


def _with(rows: Dataset, column: str, numbers: list[float]) -> Dataset:
    order = rows.column_names
    rows = rows.remove_columns(column).add_column(column, numbers, feature=Value("float64"))
    return rows.select_columns(order)
