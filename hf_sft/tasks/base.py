"""Task: dataset columns -> model inputs, Auto class, collator, metrics, predictions."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset, DatasetDict

from hf_sft.component import Component
from hf_sft.errors import listing, nearest


class Task(Component):
    """The ``task`` block; ``type`` is the pipeline tag of the Hub.

    ``auto_class`` and ``auto_processor`` are names in ``transformers``, resolved when used.
    """

    auto_class: ClassVar[str]
    auto_processor: ClassVar[str]
    selection_metric: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]  # what ``metrics`` logs beside the loss
    label: str = "label"

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Recipe key -> column of the data it names."""

    @abstractmethod
    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        """The data with its labels as ClassLabel, only ``keep`` when given.

        Raises:
            DataError: every problem found, one line each.
        """

    @abstractmethod
    def prepare(self, processor: Any, model: Any) -> None:
        """Settle what processor and model must agree on (image size, padding token, length)."""

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        """Rows as the model's forward takes them, with ``labels`` where the label is known."""

    @abstractmethod
    def collator(self, processor: Any) -> Callable:
        """Encoded rows -> one batch of tensors."""

    @abstractmethod
    def metrics(self, names: list[str]) -> Any:
        """A streaming ``compute_metrics`` (``batch_eval_metrics``) for these label names."""

    @abstractmethod
    def read_inputs(self, path: Path) -> Dataset:
        """What ``hf-sft predict`` is given, as rows with this task's columns.

        Raises:
            DataError: nothing to predict there, or a column is missing.
        """

    @abstractmethod
    def predictions(self, rows: Dataset, logits: Any, names: list[str]) -> Iterator[dict]:
        """One readable record per row: what was given, the label, its probability, all of them."""

    def missing_columns(self, split: str, found: list[str]) -> list[str]:
        """One problem for each column that the recipe names and the split does not have."""
        return [
            f"{key} names column {column!r}, but {split} has: {listing(found)}."
            f"{nearest(column, found)}"
            for key, column in self.columns().items()
            if column not in found
        ]
