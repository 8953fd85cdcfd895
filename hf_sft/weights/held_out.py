"""Rows that a finished run has not trained on, by which what is made from it can be chosen."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict

from hf_sft.errors import DataError
from hf_sft.loaders.splits import at_most, split
from hf_sft.recipe import Recipe

MOST = 1000  # rows, where data.max_eval_samples does not say otherwise: a path measures them often
CAPS = ("per_class", "max_train_samples", "max_eval_samples")
NUMBER = "number of the row"


@dataclass(frozen=True)
class HeldOut:
    """``rows``, in words where they are from, and whether the run has not trained on them."""

    rows: Dataset
    origin: str
    unseen: bool

    def refuse_seen(self) -> None:
        """Nothing may be chosen by rows that were trained on, nor by the test split.

        Raises:
            DataError: these are such rows.
        """
        if not self.unseen:
            raise DataError(
                "data: the run trained on every row but those of test, so no row is left to choose "
                "by. Train with a validation split (early_stopping, or "
                "training.load_best_model_at_end), or say yourself what to take."
            )


def load_rows(recipe: Recipe) -> tuple[DatasetDict, HeldOut]:
    """The splits of a run, and rows held out from its training.

    They are its validation split; else the rows of train that ``data.per_class`` or
    ``data.max_train_samples`` left out, never those of test; else, marked as seen, train itself.
    """
    task, loader = recipe.task, recipe.data
    checked = task.check(loader.load(recipe.locate), loader.keep_labels)
    data = split(checked, loader, task.stratum, recipe.selects)
    most, seed = loader.max_eval_samples or MOST, loader.split_seed
    if "validation" in data:
        return data, HeldOut(data["validation"], "validation rows", True)
    unused = _unused(checked, loader, task.stratum)
    if len(unused):
        few = at_most(unused, task.stratum, most, seed)
        return data, HeldOut(few, "train rows that the run left out", True)
    few = at_most(data["train"], task.stratum, most, seed)
    return data, HeldOut(few, "rows that the run trained on", False)


def _unused(checked: DatasetDict, loader: Any, label: str) -> Dataset:
    """The rows of train that the caps leave out, after test was carved from it."""
    train = checked["train"]
    train = train.add_column(NUMBER, list(range(len(train))))
    numbered = DatasetDict({**checked, "train": train})
    whole = split(numbered, loader.model_copy(update=dict.fromkeys(CAPS)), label, False)["train"]
    used = set(split(numbered, loader, label, False)["train"][NUMBER])
    left = [i for i, number in enumerate(whole[NUMBER]) if number not in used]
    return whole.select(left).remove_columns(NUMBER)
