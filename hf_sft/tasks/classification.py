"""What image and text classification share: labels, metrics, and the form of a prediction."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict

from hf_sft.errors import DataError
from hf_sft.tasks.base import Task
from hf_sft.tasks.classification_metrics import SCALARS, StreamingClassification
from hf_sft.tasks.labels import encode_labels


class Classification(Task):
    """One class per example."""

    selection_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        missing = [
            line for split in data for line in self.missing_columns(split, data[split].column_names)
        ]
        if missing:
            raise DataError("\n".join(missing))
        problems = []
        try:
            data = encode_labels(data, self.label, keep)
        except DataError as error:
            problems.append(str(error))
        data = DatasetDict({split: self.typed(rows) for split, rows in data.items()})
        for split, rows in data.items():
            problems += self.input_problems(f"data.{split}", rows)
        if problems:
            raise DataError("\n".join(problems))
        return data

    @abstractmethod
    def typed(self, rows: Dataset) -> Dataset:
        """The rows with input columns of the type this task reads, where they can be."""

    @abstractmethod
    def input_problems(self, place: str, rows: Dataset) -> list[str]:
        """A line for each of the first inputs the model could not take."""

    def metrics(self, names: list[str]) -> StreamingClassification:
        return StreamingClassification(names)

    def predictions(self, rows: Dataset, logits: Any, names: list[str]) -> Iterator[dict]:
        probabilities = torch.as_tensor(logits).float().softmax(-1)
        for given, scores in zip(self.shown_inputs(rows), probabilities.tolist(), strict=True):
            best = max(range(len(names)), key=scores.__getitem__)
            yield {
                **given,
                "label": names[best],
                "probability": scores[best],
                "probabilities": dict(zip(names, scores, strict=True)),
            }

    @abstractmethod
    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        """What a person needs to recognise each row in the predictions."""
