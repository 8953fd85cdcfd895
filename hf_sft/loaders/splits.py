"""Parts carved from train and few-shot caps: stratified, seeded, repeatable."""

import logging
from collections import defaultdict

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict

from hf_sft.errors import DataError, listing, nearest
from hf_sft.loaders.base import Loader

log = logging.getLogger(__name__)


def split(data: DatasetDict, loader: Loader, label: str | None, validation: bool) -> DatasetDict:
    """Carve what is missing, then apply the caps; every choice depends on ``split_seed`` alone.

    Args:
        data: splits with ``label`` already encoded.
        loader: the ``data`` block with fractions and caps.
        label: the column to stratify by; None where there are no classes.
        validation: whether a validation split is needed for selection or early stopping.

    Raises:
        DataError: a class is too small to be split, or the cap leaves a class without an example.
    """
    data = DatasetDict(data)
    fractions = {
        "test": loader.test_fraction,
        "validation": loader.validation_fraction if validation else None,
    }
    for name, fraction in fractions.items():
        if fraction and name not in data:
            place = (fraction, loader.split_seed, f"data.{name}_fraction")
            whole = data["train"]
            data["train"], data[name] = (
                carve(whole, label, *place)
                if loader.group is None
                else carve_groups(whole, loader.group, *place)
            )
            _warn_of_untrained(whole, data["train"], label, loader.group, name)
    _warn_of_shared(data, loader.group)
    if loader.per_class:
        if label is None:
            raise DataError(
                "data.per_class: this task has no classes. Use data.max_train_samples instead."
            )
        data["train"] = per_class(data["train"], label, loader.per_class, loader.split_seed)
    return DatasetDict({name: _capped(data[name], label, loader, name) for name in data})


def carve(
    rows: Dataset, label: str | None, fraction: float, seed: int, key: str
) -> tuple[Dataset, Dataset]:
    """(kept, carved): ``fraction`` of every class goes to the second part, in the data's order."""
    classes = _by_class(rows, label, seed)
    if label is None and len(rows) < 2:
        raise DataError(f"{key}: one example cannot be in both parts. Give the split as a file.")
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


def carve_groups(
    rows: Dataset, group: str, fraction: float, seed: int, key: str
) -> tuple[Dataset, Dataset]:
    """(kept, carved): whole groups in seeded random order, until ``fraction`` of the rows is.

    Rows of one value of the column ``group`` are never in both parts; classes are not balanced.

    Raises:
        DataError: no such column, or a single group.
    """
    if group not in rows.column_names:
        raise DataError(
            f"data.group names column {group!r}, but train has: {listing(rows.column_names)}."
            f"{nearest(group, rows.column_names)}"
        )
    groups = defaultdict(list)
    for index, value in enumerate(rows[group]):
        groups[value].append(index)
    if len(groups) < 2:
        raise DataError(
            f"{key}: all rows have the same {group!r} and would be in one part. Give the split as "
            "a file, or set data.group to another column, or to null."
        )
    carved: list[int] = []
    parts = list(groups.values())
    for number in _shuffled(len(parts), seed)[:-1]:  # one group stays
        if carved and len(carved) + len(parts[number]) / 2 > fraction * len(rows):
            break
        carved += parts[number]
    kept = sorted(set(range(len(rows))) - set(carved))
    return rows.select(kept), rows.select(sorted(carved))


def _warn_of_untrained(
    before: Dataset, after: Dataset, label: str | None, group: str | None, name: str
) -> None:
    """Say which classes train has no row of any more."""
    if label is None or not isinstance(before.features[label], ClassLabel):
        return
    lost = [_name(before, label, c) for c in sorted(set(before[label]) - set(after[label]))]
    if lost:
        log.warning(
            "data.%s_fraction: all rows of %s went to %s with their %r, so that train has none: "
            "the model cannot learn them. Set another data.split_seed, give the split as a file, "
            "or leave them out with data.keep_labels.", name, listing(lost), name, group
        )  # fmt: skip


def _warn_of_shared(data: DatasetDict, group: str | None) -> None:
    """Parts that came as files may share groups; that is the user's to know, not ours to forbid."""
    known = [name for name, rows in data.items() if group in rows.column_names]
    if "train" not in known:
        return
    trained = set(data["train"][group])
    for name in known:
        shared = trained & set(data[name][group])
        if name != "train" and shared:
            log.warning(
                "data.%s shares %d of its %r values with train (%s): scores will be too good.",
                *(name, len(shared), group, listing(sorted(map(str, shared)), 3)),
            )


def per_class(rows: Dataset, label: str | None, count: int, seed: int) -> Dataset:
    """At most ``count`` examples of every class, in the data's order."""
    chosen = [i for indices in _by_class(rows, label, seed).values() for i in indices[:count]]
    return rows.select(sorted(chosen))


def at_most(rows: Dataset, label: str | None, count: int | None, seed: int) -> Dataset:
    """At most ``count`` examples, in the data's order; all for ``None``.

    One of every class, the rest in proportion to the classes (Sainte-Laguë: the next example is
    from the class with the largest size / (examples it has + 1/2)); equals in seeded random order.
    """
    if count is None or len(rows) <= count:
        return rows
    if label is None or not isinstance(rows.features[label], ClassLabel):
        return rows.select(sorted(_shuffled(len(rows), seed)[:count]))
    classes = list(_by_class(rows, label, seed).values())
    ranked = sorted(
        (taken > 0, -len(found) / (taken + 0.5), turn, index)
        for found, turn in zip(classes, _shuffled(len(classes), seed), strict=True)
        for taken, index in enumerate(found)
    )
    return rows.select(sorted(index for *_, index in ranked[:count]))


def _capped(rows: Dataset, label: str | None, loader: Loader, name: str) -> Dataset:
    key = "max_train_samples" if name == "train" else "max_eval_samples"
    most = getattr(loader, key)
    if problem := _lost_classes(rows, label, most, f"data.{key}", name):
        if name == "train":  # the head has a place for every class
            raise DataError(problem)
        log.warning(problem)
    return at_most(rows, label, most, loader.split_seed)


def _lost_classes(
    rows: Dataset, label: str | None, count: int | None, key: str, name: str
) -> str | None:
    """What to say when ``count`` examples cannot hold every class there is in the rows."""
    if count is None or label is None or not isinstance(rows.features[label], ClassLabel):
        return None
    classes = sorted(set(rows[label]))
    if count >= len(classes):
        return None
    return (
        f"{key}: {count} examples cannot hold the {len(classes)} classes of {name}: "
        f"{listing(_name(rows, label, value) for value in classes)}. Set it to {len(classes)} or "
        "more, or leave classes out with data.keep_labels."
    )


def _by_class(rows: Dataset, label: str | None, seed: int) -> dict[int, list[int]]:
    """Class -> its row numbers in seeded random order; classes in the order of their values."""
    indices = defaultdict(list)
    for index, value in enumerate([0] * len(rows) if label is None else rows[label]):
        indices[value].append(index)
    generator = np.random.default_rng(seed)
    return {value: generator.permutation(indices[value]).tolist() for value in sorted(indices)}


def _shuffled(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(count).tolist()


def _name(rows: Dataset, label: str | None, value: int) -> str:
    feature = rows.features[label]
    return feature.int2str(value) if isinstance(feature, ClassLabel) else str(value)
