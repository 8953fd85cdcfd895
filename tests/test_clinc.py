import json
import os
from pathlib import Path

import pytest
from tiny_run import ROWS, text_recipe

from hf_sft.errors import DataError
from hf_sft.loaders import Clinc
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.running import run

GOOD = {
    "train": [["transfer ten", "transfer"], ["what is my balance", "balance"]],
    "val": [["send five", "transfer"]],
    "test": [["how much have i", "balance"]],
    "oos_train": [["who won", "oos"]],
    "oos_val": [["is it late", "oos"]],
    "oos_test": [["sing", "oos"], ["dance", "oos"]],
}


def written(folder, content):
    path = folder / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def loaded(folder, content=GOOD, **settings):
    written(folder, content)
    return Clinc(path="data.json", **settings).load(locator(folder))


def refused(folder, content, **settings):
    with pytest.raises(DataError) as error:
        loaded(folder, content, **settings)
    return str(error.value)


def test_out_of_scope_rows_are_a_class_behind_the_intents(tmp_path):
    data = loaded(tmp_path)
    assert {split: rows["label"][:] for split, rows in data.items()} == {
        "train": ["transfer", "balance", "oos"],
        "validation": ["transfer", "oos"],
        "test": ["balance", "oos", "oos"],
    }
    assert data["test"]["text"][:] == ["how much have i", "sing", "dance"]


def test_they_can_be_left_out(tmp_path):
    data = loaded(tmp_path, out_of_scope=False)
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert all("oos" not in rows["label"][:] for rows in data.values())


def test_a_file_may_have_only_train(tmp_path):
    assert set(loaded(tmp_path, {"train": GOOD["train"]})) == {"train"}


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", ["cannot be read as json", "Wanted: {split:"]),
     ([["a", "b"]], ["holds list, not an object"]),
     ({"tain": []}, ["no split 'train', but: tain"]),
     ({"train": {"a": "b"}}, ["train is no list of rows"]),
     ({"train": [["a", "b"], ["c"]]}, ["'data.json' train row 2 is [\"c\"]", "[text, intent]"]),
     ({**GOOD, "oos_val": [["a", None]]}, ["oos_val row 1 is [\"a\", null]"]),
     ({**GOOD, "test": [["a", "x"], [" ", "x"]]}, ["test row 2"]),
     ({k: v for k, v in GOOD.items() if k != "oos_train"},
      ["none to learn from (oos_train)", "data.out_of_scope: false"])],
    ids=["torn", "list", "typo", "object", "short", "null", "blank", "nothing-to-learn-from"],
)  # fmt: skip
def test_what_is_wrong_is_told_with_file_split_and_row(tmp_path, content, words):
    message = refused(tmp_path, content)
    assert message.startswith("data.path: 'data.json'")
    assert all(word in message for word in words)


def test_the_first_bad_row_of_every_split_is_told(tmp_path):
    message = refused(tmp_path, {**GOOD, "train": [[1, "x"]], "test": ["text"]})
    assert "train row 1" in message
    assert "test row 1" in message


def test_a_run_learns_the_class_of_what_is_out_of_scope(tmp_path):
    rows = [list(row) for row in ROWS]
    outside = [["new new", "oos"], ["dry dry", "oos"], ["old old", "oos"]]
    data = {"train": rows, "test": rows[::3], "oos_train": outside, "oos_test": outside[:1]}
    written(tmp_path, data)
    path = text_recipe(tmp_path, data={"type": "clinc", "path": "data.json"})
    text = path.read_text("utf-8").replace("  test: test.csv\n", "").replace(
        "  train: train.csv\n", "")  # fmt: skip
    path.write_text(text, "utf-8")
    report = run(Recipe.load(path))
    assert report.data["labels"] == ["flower", "oos", "tree"]
    assert report.data["splits"] == {"train": len(rows) + 3, "test": len(rows[::3]) + 1}
    counts = {row["label"]: row["count"] for row in report.data["tables"]["test"]["per_class"]}
    assert counts["oos"] == 1


def test_the_published_file_can_be_read():
    folder = Path(os.environ.get("HF_SFT_DATA", "")) / "clinc150_small"
    if not (folder / "data_small.json").is_file():
        pytest.skip("needs HF_SFT_DATA with clinc150_small/data_small.json")
    data = Clinc(path="data_small.json").load(locator(folder))
    assert len(set(data["train"]["label"])) == 151
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 7600, "validation": 3100, "test": 5500,
    }  # fmt: skip
