"""Rows to choose by are rows that the run has not trained on, and never those of test."""

import pytest
from tiny_run import ROWS, text_recipe

from hf_sft.errors import DataError
from hf_sft.recipe import Recipe
from hf_sft.weights.held_out import load_rows


def rows_of(folder, data, **changes):
    data = {"train": "train.csv", **data}
    data, held = load_rows(Recipe.load(text_recipe(folder, data=data, **changes)))
    return {split: set(rows["text"]) for split, rows in data.items()}, held


@pytest.mark.parametrize("cap", [{"per_class": 5}, {"max_train_samples": 9}])
@pytest.mark.parametrize("test", [{"test_fraction": 0.25, "test": None}, {}])
def test_what_the_caps_leave_out_is_held_out(cap, test, tmp_path):
    data, held = rows_of(tmp_path, {**cap, **test})
    assert held.unseen
    assert "left out" in held.origin
    found = held.rows["text"]
    assert len(found) == len(set(found))
    assert held.rows.column_names == ["text", "label"]
    every = {text for text, _ in ROWS}
    if test:  # carved from train: neither in train, nor in test, and nothing else is missing
        assert set(found) == every - data["train"] - data["test"]
    else:
        assert set(found) == every - data["train"]


def test_a_validation_split_comes_first(tmp_path):
    changes = {"early_stopping": {"patience": 1}, "data": {"per_class": 5}}
    data, held = rows_of(tmp_path, changes.pop("data"), **changes)
    assert held.unseen
    assert set(held.rows["text"]) == data["validation"]
    assert not data["validation"] & data["train"]


def test_the_test_cap_holds_back_no_rows_for_choosing(tmp_path):
    """Rows of test that max_eval_samples leaves out are rows of test."""
    fraction = {"test_fraction": 0.5, "test": None, "per_class": 3}
    data, held = rows_of(tmp_path, fraction)
    few, capped = rows_of(tmp_path, {**fraction, "max_eval_samples": 3})
    assert few["train"] == data["train"]
    assert set(capped.rows["text"]) <= set(held.rows["text"])
    assert len(capped.rows) == 3


def test_a_run_on_every_row_leaves_none_to_choose_by(tmp_path):
    data, held = rows_of(tmp_path, {})
    assert not held.unseen
    assert set(held.rows["text"]) == data["train"]
    with pytest.raises(DataError, match="no row is left to choose by"):
        held.refuse_seen()
