"""Large tables are encoded from a file and into one, and nothing else about them changes."""

from pathlib import Path

import tiny_run
import tiny_writing
from datasets import Dataset, DatasetDict, Features, Image, Value

from hf_sft import Recipe, on_disk, run
from hf_sft.tasks import Translation


def rows(count=40):
    found = [tiny_writing.LINES[i % len(tiny_writing.LINES)] for i in range(count)]
    source, target = zip(*found, strict=True)
    return Dataset.from_dict({"source": source, "target": target})


def test_small_tables_stay(monkeypatch):
    data = DatasetDict(train=rows())
    assert on_disk.on_disk(data)["train"] is data["train"]


def test_large_tables_and_what_is_made_of_them_lie_in_files(monkeypatch):
    monkeypatch.setattr(on_disk, "LARGE", 1)
    given = rows().select(range(30, 10, -1))
    moved = on_disk.on_disk(DatasetDict(train=given))["train"]
    assert moved.to_dict() == given.to_dict()
    assert moved.features == given.features
    task, words = Translation(), tiny_writing.tokenizer()
    model = tiny_writing.model("t5", len(words))
    encoded = task.encode(moved, words, model.config)
    (file,) = encoded.cache_files
    assert Path(file["filename"]).parent == Path(moved.cache_files[0]["filename"]).parent
    assert encoded.to_dict() == task.encode(given, words, model.config).to_dict()


def test_images_stay(monkeypatch):
    monkeypatch.setattr(on_disk, "LARGE", 1)
    features = Features({"image": Image(), "label": Value("int64")})
    images = Dataset.from_dict({"image": ["a.png"], "label": [1]}, features=features)
    assert on_disk.on_disk(DatasetDict(train=images))["train"] is images


def test_a_run_is_the_same(tmp_path, monkeypatch):
    found = []
    for name, limit in (("memory", 2**26), ("file", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(on_disk, "LARGE", limit)
        if found:
            (tmp_path / name / "source").symlink_to(tmp_path / "memory" / "source")
        found.append(run(Recipe.load(tiny_run.text_recipe(tmp_path / name))).data)
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["labels"] == found[1]["labels"]
