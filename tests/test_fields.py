"""Fields of columns as columns: presence and counts from detection data."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from tiny_run import write_csv

from hf_sft.errors import DataError
from hf_sft.loaders import Hub, Table
from hf_sft.loaders.fields import with_fields
from hf_sft.resources import locator
from hf_sft.tasks import ImageClassification

CELLS = List(ClassLabel(names=["platelet", "red", "white"]))
FEATURES = Features({
    "objects": {"category": CELLS, "bbox": List(List(Value("float32")))},
    "parts": List({"name": Value("string")}),
})  # fmt: skip
ROWS = [
    {"objects": {"category": [1, 1, 2], "bbox": [[0, 0, 1, 1]] * 3}, "parts": [{"name": "a"}]},
    {"objects": {"category": [], "bbox": []}, "parts": []},
]


def rows():
    return Dataset.from_list(ROWS, FEATURES)


def test_fields_keep_their_type_and_their_values():
    names = ["objects.category", "objects.bbox.count", "parts.name"]
    found = with_fields(rows(), names)
    assert found.features["objects.category"] == CELLS
    assert found["objects.category"][:] == [[1, 1, 2], []]
    assert found["objects.bbox.count"][:] == [3, 0]
    assert found["parts.name"][:] == [["a"], []]


@pytest.mark.parametrize("name", ["objects.colour", "objects.category.count.more", "other.category",
                                  "objects.count", "objects"])  # fmt: skip
def test_what_is_no_field_is_passed_over(name):
    assert with_fields(rows(), [name]).column_names == ["objects", "parts"]


def test_a_column_whose_name_has_a_dot_stays_itself(tmp_path):
    write_csv(tmp_path / "train.csv", [["x", 1], ["y", 2]], ("a.b", "count"))
    data = Table(train="train.csv", columns={"text": "a.b"}).load(locator(tmp_path))
    assert data["train"].column_names == ["text", "count"]


def test_which_cells_and_how_many_from_the_boxes_of_a_data_set(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    columns = {"label": "objects.category", "cells": "objects.category.count"}
    data = Hub(path="hub", columns=columns).load(locator(tmp_path))
    which = ImageClassification(problem="multi-label").answer.encode(data, None)
    assert which["train"]["label"][:] == [[0, 1], []]
    assert which["train"].features["label"].feature.names == ["red", "white"]
    count = ImageClassification(problem="regression", label="cells").answer.encode(data, None)
    assert count["train"]["cells"][:] == [3.0, 0.0]


def test_a_field_that_is_not_there_is_told(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows().to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="data.columns.label names column 'objects.class'"):
        Hub(path="hub", columns={"label": "objects.class"}).load(locator(tmp_path))
