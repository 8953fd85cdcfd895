"""One class of several: cross-entropy, accuracy, the class with the largest probability."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import DatasetDict
from torch import Tensor

from hf_sft.errors import DataError, listing, nearest
from hf_sft.tasks.answer import Answer
from hf_sft.tasks.classification_metrics import SCALARS, StreamingClassification
from hf_sft.tasks.labels import encode_labels, name_labels


@dataclass(frozen=True)
class OneClass(Answer):
    """``column`` names the class. ``positive``: the class whose F1 is measured as ``f1``."""

    problem_type: ClassVar[str] = "single_label_classification"
    selection_metric: ClassVar[str] = "accuracy"
    lower_is_better: ClassVar[tuple[str, ...]] = ("calibration_error",)
    keys: ClassVar[tuple[str, ...]] = ("label", "probability", "probabilities")
    column: str
    positive: str | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        return SCALARS if self.positive is None else (*SCALARS, "f1")

    @property
    def stratum(self) -> str:
        return self.column

    def encode(self, data: DatasetDict, keep: list | None) -> DatasetDict:
        data = encode_labels(data, self.column, keep)
        names = self.names(data["train"].features)
        if self.positive is not None and self.positive not in names:
            raise DataError(
                f"task.positive: {self.positive!r} is no class of the data. Choices: "
                f"{listing(names)}.{nearest(self.positive, names)}"
            )
        return data

    def names(self, features: Any) -> list[str]:
        return features[self.column].names

    def soft_targets(self, values: list[int], names: list[str]) -> list[list[float]]:
        """1 for a row's class, else 0."""
        return [[float(label == value) for label in range(len(names))] for value in values]

    def configure(self, config: Any, names: list[str]) -> None:
        name_labels(config, names)
        if getattr(config, "problem_type", None) is not None:
            config.problem_type = self.problem_type

    def metrics(self, names: list[str]) -> StreamingClassification:
        return StreamingClassification(names, self.positive)

    def records(self, logits: Tensor, names: list[str]) -> Iterator[dict]:
        """The label, its probability, the probabilities of all."""
        for scores in logits.float().softmax(-1).tolist():
            best = max(range(len(names)), key=scores.__getitem__)
            yield {
                "label": names[best],
                "probability": scores[best],
                "probabilities": dict(zip(names, scores, strict=True)),
            }
