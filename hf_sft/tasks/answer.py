"""Answer: what a classifier says of one example: one class, several labels, or a number."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from torch import Tensor

from hf_sft.tasks.labels import name_labels


class Answer(ABC):
    """One form of answer: how its labels are read, trained, measured and shown.

    Attributes:
        problem_type: transformers' word for it, which decides the model's loss.
        column: where checked data hold the label.
        metric_names, selection_metric, lower_is_better: as those of a Task.
        keys: what its records hold beside the input.
        mistakes: what the rows are called that its metrics keep as ``surprises``.
    """

    problem_type: ClassVar[str]
    metric_names: tuple[str, ...]
    selection_metric: ClassVar[str]
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[tuple[str, ...]]
    mistakes: ClassVar[str] = "most confident mistakes"
    column: str

    @property
    def stratum(self) -> str | None:
        """The ClassLabel that parts and caps are balanced by."""
        return None

    @abstractmethod
    def encode(self, data: DatasetDict, keep: list | None) -> DatasetDict:
        """The data with ``column`` as numbers.

        Raises:
            DataError: labels that are none, with row numbers.
        """

    @abstractmethod
    def names(self, features: Any) -> list[str]:
        """The model's outputs by the Features of encoded rows."""

    def targets(self, values: list, names: list[str]) -> list:
        """Values of ``column`` as the model's loss takes them."""
        return values

    def soft_targets(self, values: list, names: list[str]) -> list[list[float]]:
        """Values of ``column`` as numbers that can be mixed, one per name."""
        return self.targets(values, names)

    def configure(self, config: Any, names: list[str]) -> None:
        """Write into a source's config what its head is to be."""
        name_labels(config, names)
        config.problem_type = self.problem_type

    def doubt(self, rows: Dataset) -> str | None:
        """What makes the labels of encoded rows hard to learn, with a remedy; None for nothing."""
        return None

    @abstractmethod
    def metrics(self, names: list[str]) -> Any:
        """A streaming ``compute_metrics``."""

    @abstractmethod
    def records(self, logits: Tensor, names: list[str]) -> Iterator[dict]:
        """One readable record per row of logits (batch, outputs)."""
