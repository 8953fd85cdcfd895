"""Loader: one dataset format, on disk or on the Hub, as a DatasetDict with typed Features."""

from abc import abstractmethod

from datasets import DatasetDict
from pydantic import Field

from hf_sft.component import Component
from hf_sft.errors import DataError, listing, nearest
from hf_sft.resources import Locate


class Loader(Component):
    """The ``data`` block: where the examples are, and how many of them to use.

    ``columns`` renames columns (new name: name in the data). Splits that are missing are carved
    from train, stratified and seeded by ``split_seed``; the caps apply after the split.
    """

    columns: dict[str, str] = {}
    keep_labels: list[str | int] | None = Field(None, min_length=2)
    test_fraction: float | None = Field(None, gt=0, lt=1)
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = 0
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
        if "train" not in data:
            raise DataError(f"data: no train split; found: {listing(data)}.")
        for split, rows in data.items():
            self._check_rename(split, rows.column_names)
        renamed = {old: new for new, old in self.columns.items() if old != new}
        data = data.rename_columns(renamed)
        for split, rows in data.items():
            if len(rows) == 0:
                raise DataError(f"data.{split}: the split is empty. Give it rows or leave it out.")
        return data

    def _check_rename(self, split: str, found: list[str]) -> None:
        for new, old in self.columns.items():
            if old not in found:
                raise DataError(
                    f"data.columns.{new} names column {old!r}, but {split} has: {listing(found)}."
                    f"{nearest(old, found)}"
                )
            if new in found and new not in self.columns.values():
                raise DataError(
                    f"data.columns.{new}: {split} already has a column {new!r}; rename that one too."
                )
