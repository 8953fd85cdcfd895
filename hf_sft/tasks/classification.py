"""What image and text classification share: labels, metrics, and the form of a prediction."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader

from hf_sft.errors import DataError
from hf_sft.tasks.base import Task
from hf_sft.tasks.classification_metrics import SCALARS, StreamingClassification
from hf_sft.tasks.labels import encode_labels, name_labels


class Classification(Task):
    """One class per example."""

    label: str = "label"
    selection_metric: ClassVar[str] = "accuracy"
    metric_names: ClassVar[tuple[str, ...]] = SCALARS

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
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

    @property
    def stratum(self) -> str:
        return self.label

    def names(self, data: DatasetDict) -> list[str]:
        return data["train"].features[self.label].names

    def trained_names(self, config: Any) -> list[str]:
        return [config.id2label[i] for i in range(config.num_labels)]

    def configure(self, config: Any, names: list[str]) -> None:
        name_labels(config, names)
        if getattr(config, "problem_type", None) is not None:
            config.problem_type = "single_label_classification"

    def metrics(
        self, names: list[str], processor: Any = None, rows: Dataset | None = None
    ) -> StreamingClassification:
        return StreamingClassification(names)

    @torch.no_grad()
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        encoded, names = (
            self.encode(rows, processor, model.config),
            self.trained_names(model.config),
        )
        loader = DataLoader(encoded, size, collate_fn=self.collator(processor))
        for number, batch in enumerate(loader):
            logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits
            part = rows.select(range(number * size, number * size + len(logits)))
            yield from self.predictions(part, logits, names)

    def predictions(self, rows: Dataset, logits: Any, names: list[str]) -> Iterator[dict]:
        """Per row: what was given, the label, its probability, the probabilities of all."""
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
