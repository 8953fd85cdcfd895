"""What a new recipe does about its data: splits left out or carved, classes left out."""

import shlex
from collections import Counter
from typing import Any

from datasets import DatasetDict

from hf_sft.errors import listing
from hf_sft.new.column_roles import Roles
from hf_sft.new.findings import Finding, counted
from hf_sft.new.look import Labels

TEST_FRACTION = 0.2


def say_other_labels(found: Roles) -> list[str]:
    """That the label is a guess, where other columns could be it."""
    if not found.others:
        return []
    others = listing(map(repr, found.others))
    return [
        f"The label is taken to be {found.answer!r}; others that could be: {others}. To take "
        f"another: {shlex.quote(f'task.label={found.others[0]}')}."
    ]


def leave_out_unlabelled(
    data: DatasetDict, found: Roles, labels: Labels, block: dict[str, Any]
) -> list[str]:
    """Drop, everywhere, the splits of which no row has a label, as a competition's test rows."""
    if block["type"] not in ("hub", "table"):
        return []
    others = [split for split in data if split != "train"]
    if found.per_row:
        bare = [split for split in others if not any(labels[split])]
    elif found.keys.get("problem") == "regression":  # GLUE: -1 in every row
        values = {split: data[split][found.answer][:] for split in others}
        bare = [split for split, all_ in values.items() if len(all_) > 1 and len({*all_}) == 1]
    else:
        return []
    for split in bare:
        del data[split], labels[split]
        block.pop(split, None)
    if bare and block["type"] == "hub":
        block["splits"] = {split: (block.get("splits") or {}).get(split, split) for split in data}
    return [f"{split} is left out: none of its rows has a label." for split in bare]


def read_both_colours(block: dict[str, Any]) -> list[str]:
    """White in masks of black and white is a class, though 255 is mostly none."""
    palette = block.get("palette")
    if not isinstance(palette, dict) or list(palette.values()) != [[0] * 3, [255] * 3]:
        return []
    name = list(palette)[1]
    return [
        f"The masks hold 0 and 255 alone: 255 is read as the class {name!r}, by palette, and not "
        "as no class. Give the two their names."
    ]


def carve_test(data: DatasetDict, block: dict[str, Any]) -> list[str]:
    """A share of train as test split where there is none to measure on."""
    if "test" in data:
        return []
    if "validation" in data and "test_fraction" not in block:
        return ["There is no test split: scores come from validation."]
    share = block.setdefault("test_fraction", TEST_FRACTION)
    return [f"There is no test split: {share:.0%} of train is carved off as one."] if share else []


def both_sides(findings: list[Finding], block: dict[str, Any]) -> list[str]:
    """What repetition inside train means for a test split that is carved from it."""
    apart = block["type"] == "squad"  # an article's questions stay together
    if apart or not block.get("test_fraction") or all(f.kind != "duplicates" for f in findings):
        return []
    return ["Rows that repeat may fall on both sides of it; remove them from the file first."]


def keep_classes(labels: Labels, block: dict[str, Any]) -> list[str]:
    """Leave out classes that are in no position to be learnt or measured."""
    least = 2 if block.get("test_fraction") and "test" not in labels else 1
    counts = Counter(name for name in labels["train"] if name is not None)
    names = list(dict.fromkeys(name for found in labels.values() for name in found if name))
    kept = [name for name in names if counts[name] >= least]
    if "keep_labels" in block or len(kept) == len(names) or len(kept) < 2:
        return []
    block["keep_labels"] = sorted(kept)
    out = [name for name in names if name not in set(kept)]
    reason = "too few rows in train" if least == 2 else "not in train"
    return [f"{counted(len(out), 'class')} left out with keep_labels, {reason}: {listing(out)}."]
