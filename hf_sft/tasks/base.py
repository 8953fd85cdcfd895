"""Task: dataset columns -> model inputs, Auto class, collator, metrics, predictions."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import transformers
from datasets import Dataset, DatasetDict

from hf_sft.component import Component
from hf_sft.errors import DataError, listing, nearest


class Task(Component):
    """The ``task`` block; ``type`` is the pipeline tag of the Hub.

    ``auto_class`` and ``auto_processor`` are names in ``transformers``, resolved when used; where
    the Auto class depends on the model, `auto_model` chooses it.

    Attributes:
        metric_names: the scalars that ``metrics`` logs beside the loss.
        selection_metric: the one that chooses the best checkpoint.
        greater_is_better: of the selection metric.
        lower_is_better: those of the others that are better when lower.
        writes: evaluation writes text: Seq2SeqTransferTrainer, ``predict_with_generate``.
        in_order: its metrics count on evaluated rows in the data's order.
        unequal: its rows have lengths of their own, and a batch is padded to its longest: rows of
            like lengths are trained together, unless the recipe says otherwise.
        draws: its predictions are pictures too: ``hf-sft predict --output FOLDER``.
        locates: its model also says where things are: of a source's head with other labels only
            the outputs per class are new.
        label_names: the batch's keys that hold labels; None lets Trainer find out.
        chooses: its model says which of several classes or words it is, so that the source's own
            head can be asked what it still knows.
        own_weights: globs of parameters below the head that a source may lack (a mask token).
    """

    auto_class: ClassVar[str]
    auto_processor: ClassVar[str]
    selection_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    metric_names: ClassVar[tuple[str, ...]]
    writes: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    unequal: ClassVar[bool] = False
    label_names: ClassVar[list[str] | None] = None
    chooses: ClassVar[bool] = True
    locates: ClassVar[bool] = False
    own_weights: ClassVar[tuple[str, ...]] = ()

    def auto_model(self, config: Any) -> Any:
        """The Auto class that ``from_pretrained`` and ``from_config`` of this configuration need.

        Raises:
            SourceError: a model of this kind cannot do the task.
        """
        return getattr(transformers, self.auto_class)

    @abstractmethod
    def columns(self) -> dict[str, str]:
        """Recipe key -> column of the data it names."""

    @abstractmethod
    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        """The data with columns of the types that the others take, only classes in ``keep``.

        Raises:
            DataError: every problem found, one line each.
        """

    @property
    def stratum(self) -> str | None:
        """The ClassLabel that parts and caps are balanced by; None without classes."""
        return None

    @property
    def papers(self) -> list[str]:
        """BibTeX behind what the settings ask for, for the model card."""
        return []

    def names(self, data: DatasetDict) -> list[str]:
        """The labels of checked data in the order of the head's outputs.

        None of them: the source's own head goes on, or one of a fixed form is new.
        """
        return []

    def trained_names(self, config: Any) -> list[str]:
        """The labels of a model that this task has trained."""
        return []

    def reshaped(self, config: Any, find: Callable[[str], Path | None]) -> Any:
        """The configuration of another kind of model than the source's, where one is wanted.

        It has the same labels. ``find``: a file of the source by its name, where there is one.
        """
        return config

    def settled_as(self, model: Any) -> "Task":
        """The task with what it leaves open about the form of a model decided as in this one."""
        return self

    def configure(self, config: Any, names: list[str]) -> None:
        """Write into a source's config what its head is to be."""

    @abstractmethod
    def prepare(self, processor: Any, model: Any) -> None:
        """Settle what processor and model must agree on (image size, padding token, length)."""

    @abstractmethod
    def encode(self, rows: Dataset, processor: Any, config: Any) -> Dataset:
        """Rows as the collator takes them, with ``labels`` where the label is known."""

    @abstractmethod
    def collator(self, processor: Any) -> Callable:
        """Encoded rows -> one batch of tensors, only what the model's forward takes."""

    def training_loss(self, rows: Dataset, smoothing: float) -> Callable | None:
        """Trainer's ``compute_loss_func`` in place of the model's own loss; None for that.

        ``rows``: checked rows of train. ``smoothing``: ``label_smoothing_factor``.
        """
        return None

    @abstractmethod
    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        """A streaming ``compute_metrics`` (``batch_eval_metrics``) for one pass over ``rows``.

        Its ``tables`` hold what is no scalar after the last batch. ``rows``: one split of checked
        data, whose encoded rows come in order.
        """

    def for_training(self, rows: Dataset, processor: Any) -> Any:
        """Encoded rows of train as the trainer takes them: with what is drawn at random."""
        return rows

    def held_still(self, rows: Dataset, processor: Any) -> Dataset:
        """Encoded rows of a split that is evaluated, without what the collator draws at random."""
        return rows

    def examples(self, metrics: Any, model: Any, processor: Any, rows: Dataset) -> dict[str, list]:
        """More ``tables`` of an evaluated split, which take the model itself or the rows.

        ``metrics``: what `metrics` gave, after the last batch.
        """
        return {}

    def pictures(
        self, metrics: Any, model: Any, processor: Any, rows: Dataset
    ) -> dict[str, list[dict]]:
        """Pictures of an evaluated split for the report: title -> {caption, image} each.

        ``image``: a data URI (`pictures.picture` makes one); few and small, as the report and its
        page hold them. Or a chart: {caption, lines, x, y}, ``lines`` a dict of name -> points in
        0..1, ``x`` and ``y`` the axes' words. ``metrics``: what `metrics` gave, after the last
        batch.
        """
        return {}

    def summary(self, logits: Any, labels: Any) -> Any:
        """What of a batch's logits the metrics need, on the device (Trainer's
        ``preprocess_logits_for_metrics``); the logits themselves unless they are too many."""
        return logits

    def summarizer(self, processor: Any) -> Callable:
        """`summary`, for a task whose summary takes the processor."""
        return self.summary

    @abstractmethod
    def read_inputs(self, path: Path) -> Dataset:
        """What ``hf-sft predict`` is given, as rows with this task's columns.

        Raises:
            DataError: nothing to predict there, or a column is missing.
        """

    @abstractmethod
    def predict(self, rows: Dataset, model: Any, processor: Any, size: int) -> Iterator[dict]:
        """One readable record per row, or per thing found, from batches of ``size`` rows."""

    def draw(
        self, rows: Dataset, model: Any, processor: Any, size: int, folder: Path
    ) -> Iterator[dict]:
        """`predict`'s records, while pictures of them and the field's own format are written.

        ``folder``: empty; ``predictions.csv`` in it is written from the records. Only where the
        task ``draws``.
        """
        raise NotImplementedError

    def missing_columns(self, split: str, found: list[str]) -> list[str]:
        """One problem for each column that the recipe names and the split does not have."""
        return [
            f"{key} names column {column!r}, but {split} has: {listing(found)}."
            f"{nearest(column, found)}"
            for key, column in self.columns().items()
            if column not in found
        ]

    def refuse_missing(self, data: DatasetDict) -> None:
        """Every column that the recipe names must be in every split.

        Raises:
            DataError: some are not; one line each.
        """
        missing = [
            s for split in data for s in self.missing_columns(split, data[split].column_names)
        ]
        if missing:
            raise DataError("\n".join(missing))
