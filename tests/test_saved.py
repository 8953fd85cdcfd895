import csv
import io
import json
import os
import shutil

import pytest
import torch
import yaml
from tiny_run import ROWS, picture, text_recipe, write_csv
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    pipeline,
)

from hf_sft import model_folder, saved
from hf_sft.cli import main
from hf_sft.tasks import TextClassification, classification

TEXTS = ["red old", "oak tall", 'ünknown, "quoted"']


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on texts; its recipe's folder is its parent."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["run", str(text_recipe(folder))]) == 0
    return folder / "out"


def records(capsys, run, given, *options):
    assert main(["predict", str(run), str(given), *map(str, options)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def refused(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def scores_of(run, texts):
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    with torch.no_grad():
        return [
            model(**tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0].tolist() for t in texts
        ]


@pytest.mark.parametrize("size", [1, 2, 32])
def test_lines_get_the_probabilities_of_the_saved_model(run, capsys, tmp_path, size):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), "utf-8")
    capsys.readouterr()
    found = records(capsys, run, tmp_path / "in.txt", "--batch-size", size)
    assert [row["text"] for row in found] == TEXTS
    for row, (flower, tree) in zip(found, scores_of(run, TEXTS), strict=True):
        assert float(row["p(flower)"]) == pytest.approx(flower, abs=1e-5)
        assert float(row["p(tree)"]) == pytest.approx(tree, abs=1e-5)
        assert row["label"] == ("flower" if flower > tree else "tree")
        assert float(row["probability"]) == pytest.approx(max(flower, tree), abs=1e-5)


def test_the_pipeline_answers_the_same(run, capsys, tmp_path):
    (tmp_path / "in.txt").write_text(TEXTS[0], "utf-8")
    capsys.readouterr()
    row = records(capsys, run, tmp_path / "in.txt")[0]
    answer = pipeline("text-classification", str(run / "model"))(TEXTS[0])[0]
    assert answer["label"] == row["label"]
    assert answer["score"] == pytest.approx(float(row["probability"]), abs=1e-5)


def test_a_table_to_a_table_and_to_json_lines(run, capsys, tmp_path):
    write_csv(tmp_path / "in.csv", enumerate(TEXTS), ("id", "text"))
    for name in ("out.csv", "out.jsonl"):
        assert (
            main(["predict", str(run), str(tmp_path / "in.csv"), "--output", str(tmp_path / name)])
            == 0
        )
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows] == [line["text"] for line in lines] == TEXTS
    assert [row["label"] for row in rows] == [line["label"] for line in lines]
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("in.csv", "txet\na\n", "Did you mean 'txet'"), ("in.csv", "", "empty"),
     ("in.txt", "\n", "no texts"), ("in.txt", None, "does not exist"),
     ("in.csv", "text\na,b\n", "line 2")],
)  # fmt: skip
def test_wrong_inputs_write_nothing(run, capsys, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    out = tmp_path / "out.csv"
    assert words in refused(capsys, "predict", run, tmp_path / name, "--output", out)
    assert {path.name for path in tmp_path.iterdir()} <= {name}


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.xlsx", ".csv or .jsonl"), ("out", ".csv or .jsonl"), ("folder.csv", "a folder"),
     ("no/folder.csv", "No such file"), ("in.txt/out.csv", "Not a directory"),
     ("x" * 300 + ".csv", "too long"), ("/proc/out.csv", "cannot be written"),
     ("protected.csv", "protected")],
)  # fmt: skip
def test_wrong_outputs_are_told_before_the_model_is_loaded(
    run, capsys, tmp_path, monkeypatch, name, words
):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "protected.csv").write_text("old")
    (tmp_path / "in.txt").write_text("red")
    monkeypatch.setattr(saved, "load", lambda *_: pytest.fail("the model was loaded"))
    if name == "protected.csv":  # for the superuser nothing is
        monkeypatch.setattr(saved.os, "access", lambda *_: False)
    message = refused(capsys, "predict", run, tmp_path / "in.txt", "--output", tmp_path / name)
    assert message.startswith("hf-sft: --output: ")
    assert words in message
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"folder.csv", "protected.csv", "in.txt"}


class Interrupted(DataLoader):
    def __iter__(self):
        yield next(super().__iter__())
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_an_interrupted_prediction_leaves_the_file_that_was_there(run, tmp_path, monkeypatch, name):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS), "utf-8")
    (tmp_path / name).write_text("old")
    words = ["predict", run, tmp_path / "in.txt", "--output", tmp_path / name, "--batch-size", 1]
    with monkeypatch.context() as patch:
        patch.setattr(classification, "DataLoader", Interrupted)
        assert main([str(word) for word in words]) == 130
    assert (tmp_path / name).read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", name}
    assert main([str(word) for word in words]) == 0
    assert len((tmp_path / name).read_text("utf-8").splitlines()) == 3 + (name == "out.csv")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_message_and_no_file(run, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("red")
    (tmp_path / "out.csv.partial").symlink_to("/dev/full")
    out = tmp_path / "out.csv"
    message = refused(capsys, "predict", run, tmp_path / "in.txt", "--output", out)
    assert "No space left" in message
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt"}


def test_an_output_that_is_a_link_stays_one(run, tmp_path):
    (tmp_path / "in.txt").write_text("red")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    words = ["predict", run, tmp_path / "in.txt", "--output", tmp_path / "link.csv"]
    assert main([str(word) for word in words]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text("utf-8").startswith("text,")


def test_evaluate_repeats_the_report(run, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    header, _, row = capsys.readouterr().out.strip().splitlines()[:3]
    shown = dict(zip(header.split(), row.split(), strict=True))
    reported = json.loads((run / "report.json").read_text())["metrics"]["test"]
    assert float(shown["accuracy"]) == pytest.approx(reported["accuracy"], abs=1e-4)


def test_evaluate_repeats_every_number_under_the_recipe_s_settings(capsys, tmp_path):
    """The loss too, which is smoothed where the recipe smooths it."""
    settings = {"label_smoothing_factor": 0.3, "learning_rate": 0.05, "max_steps": 8}
    recipe = text_recipe(tmp_path, training={**settings, "eval_strategy": "epoch"})
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / name, ROWS[:14])  # 12 of one class: its scores rise
    assert main(["run", str(recipe)]) == 0
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out")]) == 0
    header, _, row = capsys.readouterr().out.strip().splitlines()[:3]
    shown = dict(zip(header.split()[1:], map(float, row.split()[1:]), strict=True))
    reported = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["test"]
    assert shown == pytest.approx({key: reported[key] for key in shown}, abs=6e-5)
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_measures_in_the_precision_of_the_run(tmp_path, caplog):
    recipe = text_recipe(tmp_path, training={"bf16": True, "learning_rate": 0.05, "max_steps": 8})
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / name, ROWS[:14])
    assert main(["run", str(recipe)]) == 0
    reported = json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["test"]
    recipe, model, processor = saved.load(tmp_path / "out", ["data"])
    rows = saved.load_data(recipe)["test"]
    found = saved.measure(recipe, model, processor, rows, quiet=True)
    assert found["loss"] == pytest.approx(reported["loss"], abs=1e-7)
    assert "full precision" not in caplog.text
    recipe, model, processor = saved.load(tmp_path / "out", ["data"])
    del recipe.training["bf16"]
    recipe.training["fp16"] = True  # which no CPU has
    plain = saved.measure(recipe, model, processor, rows, quiet=True)
    assert plain["loss"] != pytest.approx(reported["loss"], abs=1e-7)
    assert "training.fp16: not on this machine" in caplog.text


@pytest.fixture
def moved(run, tmp_path):
    """The run alone, its source and its data out of reach."""
    folder = shutil.copytree(run, tmp_path / "moved")
    (folder / "checkpoints" / "recipe_folder.txt").write_text(str(tmp_path))
    return folder


def test_predicting_needs_neither_the_data_nor_the_source(moved, capsys, tmp_path):
    (tmp_path / "in.txt").write_text("red rose")
    assert main(["predict", str(moved), str(tmp_path / "in.txt")]) == 0
    assert main(["show", str(moved)]) == 0
    message = refused(capsys, "evaluate", moved)
    assert "data.train" in message
    assert "model.name" not in message


def test_evaluating_on_other_classes_is_refused(moved, capsys, tmp_path):
    for name in ("train.csv", "test.csv"):
        write_csv(tmp_path / name, [("red", "shrub"), ("oak", "tree")])
    message = refused(capsys, "evaluate", moved)
    assert "shrub, tree" in message
    assert "flower, tree" in message


@pytest.mark.parametrize("how", ["torn", "gone", "no config"])
def test_a_broken_model_is_one_message(moved, capsys, tmp_path, how):
    weights = moved / "model" / "model.safetensors"
    if how == "torn":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (weights if how == "gone" else moved / "model" / "config.json").unlink()
    (tmp_path / "in.txt").write_text("red")
    message = refused(capsys, "predict", moved, tmp_path / "in.txt")
    assert "cannot be loaded" in message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def image_run(tmp_path_factory):
    """A run's folder with a timm model that nobody trained."""
    run = tmp_path_factory.mktemp("images")
    config = TimmWrapperConfig(
        architecture="resnet10t",
        model_args={"channels": [8, 8, 16, 16], "stem_width": 8},
        id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
        pretrained_cfg={
            "input_size": [3, 32, 32],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "crop_pct": 1.0,
        },
    )
    model_folder.save(TimmWrapperForImageClassification(config), None, run / "model")
    blocks = {"task": {"type": "image-classification"}, "model": {"name": "./gone"},
              "data": {"type": "image-folder", "path": "gone"}}  # fmt: skip
    (run / "recipe.yaml").write_text(yaml.safe_dump(blocks))
    return run


def test_an_image_and_a_folder_of_images(image_run, capsys, tmp_path):
    paths = [picture(tmp_path / "in" / name) for name in ("a.png", "deep/b.jpg")]
    capsys.readouterr()
    found = records(capsys, image_run, tmp_path / "in")
    assert sorted(row["image"] for row in found) == sorted(map(str, paths))
    one = records(capsys, image_run, paths[0])
    together = next(row for row in found if row["image"] == str(paths[0]))
    assert float(one[0]["p(cat)"]) == pytest.approx(float(together["p(cat)"]), abs=1e-5)
    answers = pipeline("image-classification", str(image_run / "model"))(str(paths[0]))
    wanted = {answer["label"]: answer["score"] for answer in answers}
    assert {k: float(one[0][f"p({k})"]) for k in ("cat", "dog")} == pytest.approx(wanted, abs=1e-4)
    assert AutoModelForImageClassification.from_pretrained(image_run / "model")


def test_an_image_that_cannot_be_decoded_is_named(image_run, capsys, tmp_path):
    picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    message = refused(capsys, "predict", image_run, tmp_path / "in")
    assert str(tmp_path / "in" / "bad.png") in message
    assert "good.png" not in message
    assert "no images there" in refused(capsys, "predict", image_run, image_run / "recipe.yaml")


def test_predict_keeps_the_other_columns_of_a_table(tmp_path):
    """So that the answers can be joined to what they are about."""
    task = TextClassification()
    path = write_csv(
        tmp_path / "in.csv", [("a7", "red oak", "tree", 3)], header=("id", "text", "label", "size")
    )
    rows = task.read_inputs(path)
    record = next(task.predictions(rows, torch.tensor([[0.0, 2.0]]), ["flower", "tree"]))
    assert list(record) == ["id", "text", "size", "label", "probability", "probabilities"]
    assert (record["id"], record["size"], record["label"]) == ("a7", 3, "tree")


def test_rows_with_an_empty_cell_are_left_out_and_counted(run, capsys, caplog, tmp_path):
    table = [(1, "red old"), (2, ""), (3, "oak tall"), (4, "")]
    path = write_csv(tmp_path / "in.csv", table, ("id", "text"))
    capsys.readouterr()
    assert [row["id"] for row in records(capsys, run, path)] == ["1", "3"]
    assert "in.csv: 2 of 4 rows are left out, as text is empty: row 2, 4." in caplog.text
    write_csv(path, [(1, ""), (2, "")], ("id", "text"))
    assert "no row has a value in text" in refused(capsys, "predict", run, path)


def test_evaluate_tells_that_the_data_have_changed(run, caplog):
    train = run.parent / "train.csv"
    before = train.read_bytes()
    assert main(["evaluate", str(run)]) == 0
    assert "not those of the run" not in caplog.text
    try:
        train.write_bytes(before + b"old old rose,flower\n")
        assert main(["evaluate", str(run)]) == 0
    finally:
        train.write_bytes(before)
    assert "not those of the run (train)" in caplog.text
