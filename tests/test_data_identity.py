"""The identity of rows: equal for equal content in equal order, and for nothing else."""

import datasets
from datasets import Dataset, DatasetDict, Image
from tiny_run import picture

from hf_sft.data_identity import data_identity

ROWS = {"text": ["a", "b", "c"], "label": [0, 1, 0], "x": [0.5, float("nan"), None]}


def of(rows):
    return data_identity(DatasetDict(train=rows))["train"]


def test_equal_rows_have_one_identity_however_they_are_stored(tmp_path):
    rows = Dataset.from_dict(ROWS)
    rows.save_to_disk(str(tmp_path / "rows"))
    stored = datasets.load_from_disk(str(tmp_path / "rows"))
    shuffled = rows.select([2, 0, 1]).select([1, 2, 0])
    assert of(rows) == of(stored) == of(shuffled) == of(rows.with_format("numpy"))


def test_every_change_shows():
    seen = {of(Dataset.from_dict(ROWS))}
    for change in (
        {**ROWS, "text": ["a", "b", "d"]},
        {**ROWS, "label": [0, 1, 1]},
        {**ROWS, "label": ["0", "1", "0"]},
        {**ROWS, "x": [0.5, None, None]},
        {key: values[:2] for key, values in ROWS.items()},
        {key: values[::-1] for key, values in ROWS.items()},
        {("words" if key == "text" else key): values for key, values in ROWS.items()},
    ):
        found = of(Dataset.from_dict(change))
        assert found not in seen, change
        seen.add(found)


def test_an_image_counts_by_its_content(tmp_path):
    paths = [picture(tmp_path / f"{c}.png", colour=(c, 0, 0)) for c in (10, 20)]
    rows = Dataset.from_dict({"image": [str(p) for p in paths]}).cast_column("image", Image())
    before = of(rows)
    assert of(rows) == before
    picture(paths[1], colour=(30, 0, 0))
    assert of(rows) != before
