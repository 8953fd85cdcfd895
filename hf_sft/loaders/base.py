"""Loader: one dataset format, on disk or on the Hub, as a DatasetDict with typed Features."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict
from pydantic import Field

from hf_sft.component import Component
from hf_sft.errors import DataError, UserError, listing, nearest
from hf_sft.loaders.fields import with_fields
from hf_sft.resources import Locate


class Loader(Component):
    """The ``data`` block: where the examples are, and how many of them to use.

    Splits that are missing are carved from train, stratified and seeded by ``split_seed``; the caps
    apply after the split.

    Keys:
        columns: new name -> name in the data; objects.category is a field of a column,
            objects.category.count how many it holds.
        keep_labels: the classes to keep; rows of others are left out.
        test_fraction: the share carved from train where there is no test split.
        validation_fraction: the same for validation, where scores steer the training.
        split_seed: of what is carved.
        group: a column whose values are never in two parts (article, speaker, patient); title for
            squad, source, the image, for crops.
        per_class: examples of each class of train; all by default.
        max_train_samples, max_eval_samples: a stratified draw of so many; all by default.
    """

    columns: dict[str, str] = {}
    keep_labels: list[str | int] | None = Field(None, min_length=2)
    test_fraction: float | None = Field(None, gt=0, lt=1)
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    group: str | None = None
    per_class: int | None = Field(None, ge=1)
    max_train_samples: int | None = Field(None, ge=1)
    max_eval_samples: int | None = Field(None, ge=1)

    def files(self) -> dict[str, str]:
        """Recipe key -> local path or ``package:`` name of every file this loader will open."""
        return {}

    @abstractmethod
    def read(self, locate: Locate) -> DatasetDict:
        """All splits as they are found, with the data's own column names."""

    def load(self, locate: Locate) -> DatasetDict:
        """All splits found, columns renamed as the recipe says.

        Raises:
            DataError: a column to rename is missing, a split is empty, or there is no train split.
        """
        data = self.read(locate)
        for split, rows in data.items():
            data[split] = with_fields(rows, self.columns.values())
        problems = [] if "train" in data else [f"data: no train split; found: {listing(data)}."]
        for split, rows in data.items():
            if len(rows) == 0:
                file = f" ('{name}')" if (name := self.files().get(split)) else ""
                problems.append(
                    f"data.{split}{file}: the split is empty. Give it rows or leave it out."
                )
            problems += self._rename_problems(split, rows.column_names)
        if problems:
            raise DataError("\n".join(problems))
        return data.rename_columns({old: new for new, old in self.columns.items() if old != new})

    def read_each(self, locate: Locate, read: Callable[[str, Path], Dataset]) -> DatasetDict:
        """Every file by ``read(split, path)``; the problems of all files in one message."""
        found, problems = {}, []
        for split, name in self.files().items():
            try:
                found[split] = read(split, locate(name))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        return DatasetDict(found)

    def _rename_problems(self, split: str, found: list[str]) -> list[str]:
        problems, old_names = [], list(self.columns.values())
        for new, old in self.columns.items():
            key = f"data.columns.{new}"
            if old not in found:
                problems.append(
                    f"{key} names column {old!r}, but {split} has: {listing(found)}."
                    f"{nearest(old, found)}"
                )
            elif old_names.count(old) > 1:
                problems.append(f"{key}: column {old!r} is renamed twice; give it one new name.")
            elif new in found and new not in old_names:
                problems.append(
                    f"{key}: {split} already has a column {new!r}; rename that one too."
                )
        return problems
