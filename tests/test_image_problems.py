"""image-classification: classes, labels and numbers, from every form of data, in both libraries."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from sklearn.metrics import average_precision_score, r2_score
from tiny_pictures import AMOUNT, FLAGS, ONE, PROBLEMS, WORDS, picture_recipe, rows_of, squares
from tiny_run import write_csv
from transformers import EvalPrediction, pipeline

from hf_sft import saved
from hf_sft.cli import main
from hf_sft.errors import DataError, RecipeError
from hf_sft.loaders import Hub, ImageFolder, Table
from hf_sft.resources import locator
from hf_sft.running import run
from hf_sft.tasks import ImageClassification
from hf_sft.tasks.many_labels import StreamingManyLabels
from hf_sft.tasks.number import StreamingNumbers
from hf_sft.tasks.surprises import Surprises

TYPES = {"flags": "multi_label_classification", "words": "multi_label_classification",
         "number": "regression", "one": "single_label_classification"}  # fmt: skip


@pytest.mark.parametrize("kind", ["timm", "vit"])
@pytest.mark.parametrize("problem", ["flags", "words", "number"])
def test_a_run_its_evaluation_and_its_predictions_agree(tmp_path, monkeypatch, kind, problem):
    """The pipeline of Transformers says of a new picture what ``predict`` says."""
    recipe = picture_recipe(tmp_path, PROBLEMS[problem], kind)
    report = run(recipe).data
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # names of files do not start here
    found = report["metrics"]["test"]
    assert set(recipe.task.metric_names) <= set(found)
    assert f"{found['loss']:.4f}" in saved.evaluate(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text("utf-8"))
    assert config["problem_type"] == TYPES[problem]
    assert report["retention"]["examples"] == 10

    squares(tmp_path / "new" / "a.png", ["red", "blue"])
    squares(tmp_path / "new" / "b.png", [])
    assert main(["predict", str(tmp_path / "out"), str(tmp_path / "new"), "--output", "p.csv"]) == 0
    with open("p.csv", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [record["image"] for record in records] == [str(tmp_path / "new" / f"{n}.png")
                                                       for n in "ab"]  # fmt: skip
    say = pipeline("image-classification", model=str(tmp_path / "out" / "model"))
    for record in records:
        given = {answer["label"]: answer["score"] for answer in say(record["image"])}
        if problem == "number":
            assert float(record["value"]) == pytest.approx(given["amount"], abs=1e-5)
        else:
            told = {n: float(record[f"p({n})"]) for n in ("red", "green", "blue")}
            assert told == pytest.approx(given, abs=1e-5)
            assert set(json.loads(record["labels"])) == {n for n, p in given.items() if p > 0.5}


@pytest.mark.parametrize("kind", ["timm", "vit"])
@pytest.mark.parametrize("problem", ["flags", "number"])
def test_the_loss_is_the_problems_own(tmp_path, kind, problem):
    recipe = picture_recipe(tmp_path, PROBLEMS[problem], kind, rows=10)
    found = run(recipe).data["metrics"]["test"]["loss"]
    _, model, processor = saved.load(tmp_path / "out")
    rows = recipe.task.check(recipe.data.load(recipe.locate))["test"]
    batch = recipe.task.encode(rows, processor, model.config)[:]
    with torch.no_grad():
        logits = model(torch.as_tensor(batch["pixel_values"])).logits
    labels = torch.tensor(batch["labels"])
    if problem == "number":
        expected = torch.nn.functional.mse_loss(logits[:, 0], labels.float())
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert found == pytest.approx(float(expected), rel=1e-4)


METHODS = {
    "l2-sp": {"penalty": {"type": "l2-sp", "lambda": 0.1}},
    "lp-ft": {"freeze": {"type": "lp-ft"}},
    "train-last": {"freeze": {"type": "train-last", "count": 1}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", ["flags", "number"])
def test_every_method_on_every_problem(tmp_path, problem, method):
    report = run(picture_recipe(tmp_path, PROBLEMS[problem], **METHODS[method])).data
    assert report["freeze"]["verified_unchanged"]
    assert (report["freeze"]["frozen_tensors"] > 0) == (method == "train-last")
    head = report["groups"][-1]
    assert head["drift"] is None
    assert head["trainable"] > 0
    if method == "l2-sp":
        assert 0 < report["penalty"]["value"] < 1


def test_the_report_shows_what_the_model_was_most_wrong_about(tmp_path):
    shown = {}
    for name, task in (("number", AMOUNT), ("one", ONE)):
        recipe = picture_recipe(tmp_path / name, task)
        shown |= run(recipe).data["pictures"]["test"]
        page = (tmp_path / name / "out" / "report.html").read_text("utf-8")
        assert page.count("data:image/jpeg") == len(list(shown.values())[-1])
    assert set(shown) == {"largest errors", "most confident mistakes"}
    assert 0 < len(shown["largest errors"]) <= 12
    assert ", taken for " in shown["largest errors"][0]["caption"]


# ---- metrics ----


def evaluated(metric, logits, labels, size=4):
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        batch = EvalPrediction(predictions=logits[part], label_ids=labels[part])
        result = metric(batch, compute_result=start + size >= len(logits))
    return result


def test_average_precision_is_sklearns_of_the_labels_that_occur():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=generator)
    labels = (torch.rand(30, 3, generator=generator) < 0.4).float()
    labels[:, 2] = 0
    metric = StreamingManyLabels(["a", "b", "never"], 0.5)
    for _ in range(2):  # the second pass begins anew
        found = evaluated(metric, logits, labels)
        expected = average_precision_score(labels[:, :2], logits[:, :2], average="macro")
        assert found["mean_average_precision"] == pytest.approx(expected, abs=1e-6)
        assert metric.tables["average_precision"][2]["average_precision"] is None


def test_errors_of_numbers_are_what_their_names_say():
    true = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0])
    said = torch.tensor([[1.5], [2.0], [2.0], [9.0], [5.0]])
    metric = StreamingNumbers()
    found = evaluated(metric, said, true, size=2)
    assert found["mae"] == pytest.approx(4.5 / 5)
    assert found["rmse"] == pytest.approx((10.25 / 5) ** 0.5)
    assert found["r2"] == pytest.approx(r2_score(true, said[:, 0]))
    assert [told["row"] for told in metric.surprises] == [3, 2, 0]
    assert metric.surprises[0]["caption"] == "6, taken for 9"


def test_numbers_that_are_all_the_same_have_no_r2():
    found = evaluated(StreamingNumbers(), torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 3.0]))
    assert np.isnan(found["r2"])
    assert found["mae"] == 1.5


def test_surprises_keep_the_largest_and_no_more():
    scores = torch.rand(100, generator=torch.Generator().manual_seed(0))
    kept = Surprises(lambda value: f"{value:.3f}", most=5)
    for part in scores.split(7):
        kept.add(part, part)
        assert all(len(tensor) <= 5 for tensor in kept.kept)
    assert [told["row"] for told in kept.told()] == scores.argsort(descending=True)[:5].tolist()
    assert kept.told() == []


# ---- data ----


def checked(loader, task, folder):
    return task.check(loader.load(locator(folder)))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_names_files_from_where_it_lies(tmp_path, monkeypatch, ending):
    rows = Dataset.from_list(
        [{"image": row[0], "label": row[-1]} for row in rows_of(tmp_path / "data", 8)]
    )
    file = tmp_path / "data" / f"train.{ending}"
    if ending == "parquet":
        rows.to_parquet(file)
    elif ending == "jsonl":
        rows.to_json(file)
    else:
        rows.to_csv(file, sep="\t" if ending == "tsv" else ",", index=False)
    monkeypatch.chdir(tmp_path)
    data = checked(Table(train=f"data/train.{ending}"), ImageClassification(), tmp_path)
    assert data["train"][0]["image"].size == (32, 32)
    assert data["train"].features["label"].names == ["few", "many"]


def test_texts_that_only_end_like_files_stay(tmp_path):
    write_csv(tmp_path / "train.csv", [["a.png", "x"], ["b.png", "y"]])
    data = Table(train="train.csv").load(locator(tmp_path))
    assert data["train"]["text"][:] == ["a.png", "b.png"]


def test_images_in_parquet_without_their_type_are_images(tmp_path):
    squares(tmp_path / "a.png", ["red"])
    content = (tmp_path / "a.png").read_bytes()
    kind = {"bytes": Value("binary"), "path": Value("string")}
    rows = [{"image": {"bytes": content, "path": None}, "label": n} for n in ("a", "b")]
    Dataset.from_list(rows, Features({"image": kind, "label": Value("string")})).to_pandas(
    ).to_parquet(tmp_path / "train.parquet")  # fmt: skip
    data = checked(Table(train="train.parquet"), ImageClassification(), tmp_path)
    assert data["train"][1]["image"].size == (32, 32)


def test_a_table_may_name_images_anywhere_and_nothing_else(tmp_path):
    rows = rows_of(tmp_path, 8)
    names = [str(tmp_path / rows[0][0]), *(f"../{row[0]}" for row in rows[1:])]
    (tmp_path / "lists").mkdir()
    given = [[name, row[-1]] for name, row in zip(names, rows, strict=True)]
    write_csv(tmp_path / "lists" / "train.csv", given, ("image", "label"))
    loader = Table(train="lists/train.csv")
    assert len(checked(loader, ImageClassification(), tmp_path)["train"]) == 8
    (tmp_path / "secret.txt").write_text("the key is 4711")
    for name in (str(tmp_path / "secret.txt"), "../secret.txt", "https://localhost/secret.png"):
        write_csv(tmp_path / "lists" / "train.csv", [*given, [name, "few"]], ("image", "label"))
        with pytest.raises(DataError, match="data.train row 9") as error:
            checked(loader, ImageClassification(), tmp_path)
        assert "secret" in str(error.value)
        assert "4711" not in str(error.value)


def test_an_image_folder_with_columns_of_flags(tmp_path):
    rows = rows_of(tmp_path, 8)
    write_csv(tmp_path / "pictures" / "metadata.csv",
              [[row[0].split("/")[1], *row[1:4]] for row in rows],
              ("file_name", "red", "green", "blue"))  # fmt: skip
    task = ImageClassification(**{k: v for k, v in FLAGS.items() if k != "type"})
    data = checked(ImageFolder(path="pictures"), task, tmp_path)
    assert data["train"]["red"][:][:4] == [[], [0], [1], [0, 1]]
    assert task.names(data) == ["red", "green", "blue"]


def test_a_hub_data_set_with_lists_of_classes(tmp_path):
    rows = rows_of(tmp_path, 8)
    given = [{"image": str(tmp_path / r[0]), "tags": r[4].split("|") if r[4] else []} for r in rows]
    features = Features({"image": Image(), "tags": List(Value("string"))})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    file = tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"
    Dataset.from_list(given, features).to_parquet(file)
    task = ImageClassification(problem="multi-label", label="tags")
    data = checked(Hub(path="hub"), task, tmp_path)
    assert task.names(data) == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("row", "words"),
    [(["pictures/none.png", "few"], ["data.train row 9", "none.png' does not exist"]),
     (["train.csv", "few"], ["data.train row 9", "cannot be decoded", "Replace or remove"]),
     (["", "few"], ["data.train row 9", "there is no image"]),
     (["pictures/train-0.png", ""], ["data.train row 9", "every row needs a class"])],
    ids=["missing", "no-image", "empty", "no-label"],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path, row, words):
    rows = [[r[0], r[-1]] for r in rows_of(tmp_path, 8)]
    write_csv(tmp_path / "train.csv", [*rows, row], ("image", "label"))
    with pytest.raises(DataError) as error:
        checked(Table(train="train.csv"), ImageClassification(), tmp_path)
    for word in words:
        assert word in str(error.value)


def test_flags_that_are_none_and_numbers_that_are_none_are_named_by_row(tmp_path):
    rows = [[r[0], r[1], "x" if i == 2 else "4.5"] for i, r in enumerate(rows_of(tmp_path, 4))]
    rows[3][1] = 2
    write_csv(tmp_path / "train.csv", rows, ("image", "red", "green"))
    loader = Table(train="train.csv")
    with pytest.raises(DataError, match="row 4: 'red' is 2, neither 0 nor 1"):
        checked(
            loader, ImageClassification(problem="multi-label", label=["red", "green"]), tmp_path
        )
    with pytest.raises(DataError, match="row 3: 'green' is 'x', no number"):
        checked(loader, ImageClassification(problem="regression", label="green"), tmp_path)


def test_predict_takes_a_table_of_names(tmp_path, monkeypatch, capsys):
    recipe = picture_recipe(tmp_path, WORDS)
    run(recipe)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["predict", "out", "data/test.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11
    assert "test-0.png" in lines[1]
    write_csv(tmp_path / "other.csv", [["a"]], ("picture",))
    assert main(["predict", "out", "other.csv"]) == 2
    assert "task.image names column 'image'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "words"),
    [({**AMOUNT, "mixup": 0.2}, "mixup and cutmix are for classes"),
     ({**FLAGS, "class_weights": "balanced"}, "class_weights is for problem: single-label"),
     ({**ONE, "augment": "wild"}, "augment"),
     ({**ONE, "cutmix": 0}, "cutmix")],
    ids=["mixed-numbers", "weighted-labels", "no-preset", "zero"],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(tmp_path, task, words):
    with pytest.raises(RecipeError, match=words):
        picture_recipe(tmp_path, task)
