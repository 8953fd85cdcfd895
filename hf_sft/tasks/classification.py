"""What classification of images, texts and sounds shares: labels, metrics, form of a prediction."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from datasets import Dataset, DatasetDict
from pydantic import Field, model_validator
from torch.utils.data import DataLoader

from hf_sft.errors import DataError, RecipeError
from hf_sft.tasks.answer import Answer
from hf_sft.tasks.base import Task
from hf_sft.tasks.class_weights import BalancedLoss, CrossEntropy
from hf_sft.tasks.many_labels import ManyLabels
from hf_sft.tasks.number import Number
from hf_sft.tasks.one_class import OneClass

log = logging.getLogger(__name__)

ONLY = {  # keys that have no meaning under another problem
    "positive": "single-label",
    "class_weights": "single-label",
    "label_separator": "multi-label",
    "threshold": "multi-label",
}


class Classification(Task):
    """One class per example, any number of labels, or a number: what ``problem`` says.

    Keys:
        problem: one class, any number of labels, or a number, best in a unit that makes it near 1.
        label: a column; for multi-label one of lists or of texts with a label_separator, or several
            columns of 0 and 1.
        label_separator: what parts the labels of a text (multi-label).
        threshold: the probability above which a label is given (multi-label).
        positive: the class whose F1 is the metric f1.
        class_weights: balanced: while training every class counts the same, however many examples
            it has.
    """

    problem: Literal["single-label", "multi-label", "regression"] = "single-label"
    label: str | list[str] = "label"
    label_separator: str | None = Field(None, min_length=1)
    threshold: float = Field(0.5, gt=0, lt=1)
    positive: str | int | None = None
    class_weights: Literal["balanced"] | None = None

    @model_validator(mode="after")
    def _keys_fit_the_problem(self) -> "Classification":
        for key, problem in ONLY.items():
            if key in self.model_fields_set and self.problem != problem:
                raise ValueError(f"{key} is for problem: {problem}; this is {self.problem}")
        several = not isinstance(self.label, str)
        if several and self.problem != "multi-label":
            raise ValueError("label: one column is wanted; several are for problem: multi-label")
        if several and (len(set(self.label)) < 2 or len(set(self.label)) < len(self.label)):
            raise ValueError(f"label: two or more different columns are wanted, found {self.label}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """The columns that hold the answer."""
        return (self.label,) if isinstance(self.label, str) else tuple(self.label)

    def label_columns(self) -> dict[str, str]:
        """Recipe key -> column, of ``labels``."""
        if isinstance(self.label, str):
            return {"task.label": self.label}
        return {f"task.label[{i}]": column for i, column in enumerate(self.label)}

    @property
    def soft(self) -> bool:
        """Whether the labels of train are shares of classes, which no model's own loss takes."""
        return False

    @property
    def answer(self) -> Answer:
        """What the model says of an example."""
        if self.problem == "multi-label":
            return ManyLabels(self.labels, self.label_separator, self.threshold)
        if self.problem == "regression":
            return Number(self.labels[0])
        return OneClass(self.labels[0], None if self.positive is None else str(self.positive))

    def answer_names(self, rows: Dataset) -> list[str]:
        """The outputs' names; none where the rows have no label."""
        known = self.answer.column in rows.column_names
        return self.answer.names(rows.features) if known else []

    @property
    def metric_names(self) -> tuple[str, ...]:
        return self.answer.metric_names

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        return self.answer.lower_is_better

    @property
    def selection_metric(self) -> str:
        return self.answer.selection_metric

    def check(self, data: DatasetDict, keep: list | None = None) -> DatasetDict:
        self.refuse_missing(data)
        problems = []
        try:
            data = self.answer.encode(data, keep)
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
    def stratum(self) -> str | None:
        return self.answer.stratum

    def names(self, data: DatasetDict) -> list[str]:
        return self.answer.names(data["train"].features)

    def trained_names(self, config: Any) -> list[str]:
        return [config.id2label[i] for i in range(config.num_labels)]

    def configure(self, config: Any, names: list[str]) -> None:
        self.answer.configure(config, names)

    def training_loss(self, rows: Dataset, smoothing: float) -> Callable | None:
        if told := self.answer.doubt(rows):
            log.warning("data.train: %s", told)
        if smoothing and not isinstance(self.answer, OneClass):
            raise RecipeError(
                f"training.label_smoothing_factor: {smoothing:g} is for one class of several; "
                "labels and numbers have no smoothed form. Leave it out."
            )
        if self.class_weights is not None:
            classes = len(rows.features[self.answer.column].names)
            return BalancedLoss(rows[self.answer.column][:], classes, smoothing)
        return CrossEntropy(smoothing) if self.soft and self.problem == "single-label" else None

    def metrics(self, names: list[str], processor: Any = None, rows: Dataset | None = None) -> Any:
        return self.answer.metrics(names)

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
        """Per row: what was given, and the answer (for a class: ``label``, ``probability``, …)."""
        answers = self.answer.records(torch.as_tensor(logits), names)
        for given, answer in zip(self.shown_inputs(rows), answers, strict=True):
            yield {**given, **answer}

    @abstractmethod
    def shown_inputs(self, rows: Dataset) -> Iterator[dict]:
        """What a person needs to recognise each row in the predictions."""
