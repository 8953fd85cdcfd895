"""Parts carved from train and few-shot caps: stratified, seeded, repeatable."""

from collections import defaultdict

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from hf_sft.errors import DataError, listing
from hf_sft.loaders.base import Loader


def split(data: DatasetDict, loader: Loader, label: str, validation: bool) -> DatasetDict:
    """Carve what is missing, then apply the caps; every choice depends on ``split_seed`` alone.

    Args:
        data: splits with ``label`` already encoded.
        loader: the ``data`` block with fractions and caps.
        label: the column to stratify by.
        validation: whether a validation split is needed for selection or early stopping.

    Raises:
        DataError: a class is too small to be split.
    """
    data = DatasetDict(data)
    fractions = {
        "test": loader.test_fraction,
        "validation": loader.validation_fraction if validation else None,
    }
    for name, fraction in fractions.items():
        if fraction and name not in data:
            data["train"], data[name] = carve(
                data["train"], label, fraction, loader.split_seed, f"data.{name}_fraction"
            )
    if loader.per_class:
        data["train"] = per_class(data["train"], label, loader.per_class, loader.split_seed)
    for name in data:
        most = loader.max_train_samples if name == "train" else loader.max_eval_samples
        data[name] = at_most(data[name], most, loader.split_seed)
    return data


def carve(
    rows: Dataset, label: str, fraction: float, seed: int, key: str
) -> tuple[Dataset, Dataset]:
    """(kept, carved): ``fraction`` of every class goes to the second part, in the data's order."""
    classes = _by_class(rows, label, seed)
    if alone := [_name(rows, label, value) for value, found in classes.items() if len(found) < 2]:
        raise DataError(
            f"{key}: classes with a single example cannot be in both parts: {listing(alone)}. Add "
            "examples, leave the class out with data.keep_labels, or give the split as a file."
        )
    carved: set[int] = set()
    for found in classes.values():
        carved.update(found[: min(max(1, round(fraction * len(found))), len(found) - 1)])
    kept = [index for index in range(len(rows)) if index not in carved]
    return rows.select(kept), rows.select(sorted(carved))


def per_class(rows: Dataset, label: str, count: int, seed: int) -> Dataset:
    """At most ``count`` examples of every class, in the data's order."""
    chosen = [i for indices in _by_class(rows, label, seed).values() for i in indices[:count]]
    return rows.select(sorted(chosen))


def at_most(rows: Dataset, count: int | None, seed: int) -> Dataset:
    """At most ``count`` examples drawn from all, in the data's order; all for ``None``."""
    if count is None or len(rows) <= count:
        return rows
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.select(sorted(chosen.tolist()))


def _by_class(rows: Dataset, label: str, seed: int) -> dict[int, list[int]]:
    """Class -> its row numbers in seeded random order; classes in the order of their values."""
    indices = defaultdict(list)
    for index, value in enumerate(rows[label]):
        indices[value].append(index)
    generator = np.random.default_rng(seed)
    return {value: generator.permutation(indices[value]).tolist() for value in sorted(indices)}


def _name(rows: Dataset, label: str, value: int) -> str:
    feature = rows.features[label]
    return feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)
