"""text-classification beyond one class per text: labels, numbers, weights, F1 and Matthews."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef, mean_squared_error, recall_score
from tiny_run import ROWS, WORDS, source_folder, text_recipe, write_csv
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    pipeline,
)

from hf_sft import saved
from hf_sft.errors import DataError, RecipeError
from hf_sft.recipe import Recipe
from hf_sft.running import run
from hf_sft.tasks import TextClassification
from hf_sft.tasks.class_weights import BalancedLoss
from hf_sft.tasks.classification_metrics import StreamingClassification
from hf_sft.tasks.many_labels import StreamingManyLabels
from hf_sft.tasks.number import StreamingNumbers
from hf_sft.tasks.number_scale import far_from_one
from hf_sft.training.loss_scale import count_items

METHODS = {
    "l2-sp": {"penalty": {"type": "l2-sp", "lambda": 0.01}},
    "lp-ft": {"penalty": None, "freeze": {"type": "lp-ft"}},
    "train-last": {"penalty": None, "freeze": {"type": "train-last", "count": 1}},
}
TAGGED = [(text, "|".join(name for name in ("red", "old", "tall") if name in text))
          for text, _ in ROWS]  # fmt: skip
SCORED = [(text, WORDS.index(text.split()[0]) / 2) for text, _ in ROWS]
MULTI = {"type": "text-classification", "problem": "multi-label", "label_separator": "|"}
REGRESSION = {"type": "text-classification", "problem": "regression", "label": "score"}


def recipe_of(folder, task, rows, column, **changes):
    """The tiny recipe with another task, its csv files with other labels."""
    path = text_recipe(folder, task=task, **changes)
    write_csv(folder / "train.csv", rows, ("text", column))
    write_csv(folder / "test.csv", rows[::3], ("text", column))
    return Recipe.load(path)


def data(**splits):
    return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})


def refused(task, splits, keep=None):
    with pytest.raises(DataError) as error:
        task.check(splits, keep)
    return str(error.value)


def streamed(metric, logits, labels, size):
    for start in range(0, len(labels), size):
        part = SimpleNamespace(
            predictions=logits[start : start + size], label_ids=labels[start : start + size]
        )
        result = metric(part, compute_result=start + size >= len(labels))
    return result


# ---- what a run leaves ----


@pytest.mark.parametrize("method", METHODS)
def test_many_labels_through_a_whole_run(tmp_path, method):
    report = run(recipe_of(tmp_path, MULTI, TAGGED, "label", **METHODS[method]))
    assert report.data["labels"] == ["old", "red", "tall"]
    assert set(report.data["metrics"]["test"]) >= {"micro_f1", "macro_f1", "exact_match", "loss"}
    assert [r["label"] for r in report.data["tables"]["test"]["per_class"]] == [
        "old",
        "red",
        "tall",
    ]
    assert report.data["freeze"]["verified_unchanged"]
    assert report.data["retention"]["spearman"] > 0.2
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.label2id == {"old": 0, "red": 1, "tall": 2}
    assert "per_class" not in report.data["metrics"]["test"]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "micro f1" in page
    assert "Each class, test" in page


def test_a_column_of_labels_may_be_called_as_batches_call_it(tmp_path):
    for name in ("usual", "named"):
        (tmp_path / name).mkdir()
        torch.manual_seed(0)  # of the source
        source_folder(tmp_path / name / "source")
    usual = run(recipe_of(tmp_path / "usual", MULTI, TAGGED, "label"))
    named = run(recipe_of(tmp_path / "named", {**MULTI, "label": "labels"}, TAGGED, "labels"))
    assert usual.data["metrics"]["test"] == named.data["metrics"]["test"]


@pytest.mark.parametrize("method", METHODS)
def test_numbers_through_a_whole_run(tmp_path, method):
    report = run(recipe_of(tmp_path, REGRESSION, SCORED, "score", **METHODS[method]))
    assert set(report.data["metrics"]["test"]) >= {"spearman", "pearson", "mse", "loss"}
    found = report.data["metrics"]["test"]
    assert found["mse"] == pytest.approx(found["loss"], rel=1e-4)
    assert report.data["retention"]["spearman"] > 0.2
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.config.problem_type == "regression"
    assert model.config.id2label == {0: "score"}
    assert "mse" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert (tmp_path / "out" / "README.md").is_file()


def predicted(folder):
    given, written = folder / "given.txt", folder / "said.jsonl"
    given.write_text("red old\noak new\n", "utf-8")
    saved.predict(folder / "out", given, written, 8)
    return [json.loads(line) for line in written.read_text("utf-8").splitlines()]


def test_predict_evaluate_and_pipeline_agree_on_labels(tmp_path):
    task = {**MULTI, "threshold": 0.3}
    report = run(recipe_of(tmp_path, task, TAGGED, "label", training={"num_train_epochs": 4}))
    records = predicted(tmp_path)
    assert [record["text"] for record in records] == ["red old", "oak new"]
    say = pipeline("text-classification", model=str(tmp_path / "out" / "model"), top_k=None)
    for record, answers in zip(records, say([r["text"] for r in records]), strict=True):
        known = {answer["label"]: answer["score"] for answer in answers}
        assert record["probabilities"] == pytest.approx(known, abs=1e-5)
        assert record["labels"] == [n for n in ("old", "red", "tall") if known[n] > 0.3]
    shown = saved.evaluate(tmp_path / "out")
    assert f"{report.data['metrics']['test']['micro_f1']:.4f}" in shown


def test_predict_evaluate_and_pipeline_agree_on_numbers(tmp_path):
    report = run(recipe_of(tmp_path, REGRESSION, SCORED, "score", training={"num_train_epochs": 4}))
    records = predicted(tmp_path)
    say = pipeline("text-classification", model=str(tmp_path / "out" / "model"))
    for record in records:
        (answer,) = say([record["text"]])
        assert answer == {"label": "score", "score": pytest.approx(record["value"], abs=1e-5)}
    assert f"{report.data['metrics']['test']['mse']:.4f}" in saved.evaluate(tmp_path / "out")


def test_the_best_checkpoint_by_an_error_is_the_one_with_the_smallest(tmp_path):
    training = {"num_train_epochs": 4, "learning_rate": 0.05, "load_best_model_at_end": True,
                "metric_for_best_model": "mse"}  # fmt: skip
    report = run(recipe_of(tmp_path, REGRESSION, SCORED, "score", training=training))
    scores = [entry["eval_mse"] for entry in report.data["history"] if "eval_mse" in entry]
    assert len(scores) == 4
    assert report.data["metrics"]["validation"]["mse"] == pytest.approx(min(scores), rel=1e-5)


def test_a_run_with_f1_of_a_class_and_balanced_weights(tmp_path):
    rows = [row for row in ROWS if row[1] == "tree"] + [r for r in ROWS if r[1] == "flower"][:3]
    task = {"type": "text-classification", "positive": "flower", "class_weights": "balanced"}
    training = {"load_best_model_at_end": True, "metric_for_best_model": "f1"}
    recipe = recipe_of(tmp_path, task, rows, "label", training=training)
    report = run(recipe)
    found = report.data["metrics"]["test"]
    flower = report.data["tables"]["test"]["per_class"][0]
    assert flower["label"] == "flower"
    assert found["f1"] == flower["f1"]
    assert "matthews" in found
    assert f"{found['loss']:.4f}" in saved.evaluate(tmp_path / "out")  # the plain loss, in both


# ---- labels as they are found ----


@pytest.mark.parametrize(
    ("task", "columns"),
    [({}, {"label": [["b", "a"], [], ["a"]]}),
     ({}, {"label": [["b", "a"], None, ["a", "a"]]}),
     ({"label_separator": ";"}, {"label": ["b; a", None, " a"]}),
     ({"label_separator": ";"}, {"label": ["b;a", "", "a;"]}),
     ({"label": ["a", "b"]}, {"a": [1, 0, 1], "b": [True, False, False]}),
     ({"label": ["a", "b"]}, {"a": [1.0, 0.0, 1.0], "b": [1, 0, 0]})],
    ids=["lists", "none", "separator", "blank", "flags", "float-flags"],
)  # fmt: skip
def test_labels_may_be_written_in_several_ways(task, columns):
    task = TextClassification(problem="multi-label", **task)
    rows = task.check(data(train={"text": ["x", "y", "z"], **columns}))
    assert task.names(rows) == ["a", "b"]
    found = [sorted(row) for row in rows["train"][task.answer.column]]
    assert found == [[0, 1], [], [0]]
    assert task.answer.targets(found, ["a", "b"]) == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert task.stratum is None
    assert set(rows["train"].column_names) == {"text", task.answer.column}


def test_a_list_of_classes_keeps_their_order_and_numbers_sort_as_numbers():
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["z", "y", "x"]))})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [[0, 2], [2]]}, features=features)
    task = TextClassification(problem="multi-label")
    assert task.names(task.check(DatasetDict({"train": rows}))) == ["z", "x"]
    assert task.names(task.check(data(train={"text": ["a"], "label": [[10, 9]]}))) == ["9", "10"]


def test_only_the_labels_to_keep_are_left_and_their_order():
    task = TextClassification(problem="multi-label")
    rows = task.check(data(train={"text": ["a", "b"], "label": [["x", "y"], ["z"]]}), ["x", "z"])
    assert task.names(rows) == ["x", "z"]
    assert rows["train"]["label"][:] == [[0], [1]]


@pytest.mark.parametrize(
    ("task", "columns", "words"),
    [({}, {"label": ["a|b", "a"]}, ["data.train row 1", "'a|b', one text", "task.label_separator"]),
     ({}, {"label": [1, 2]}, ["row 1: 'label' is 1, no list of labels"]),
     ({}, {"label": [["a", None], ["b"]]}, ["row 1", "None is no label. Correct"]),
     ({}, {"label": [["a"], []]}, ["has 1 labels (a); two are needed", "task.problem: single"]),
     ({"label": ["a", "b"]}, {"a": [0, 2], "b": [1, None]},
      ["row 2: 'a' is 2, neither 0 nor 1. Correct it, or leave", "row 2: 'b' is None"]),
     ({"label": ["a", "c"]}, {"a": [0, 1], "b": [1, 1]}, ["task.label[1] names column 'c'"])],
    ids=["no-separator", "number", "none-inside", "one-label", "flags", "missing"],
)  # fmt: skip
def test_bad_labels_are_told_with_their_row(task, columns, words):
    task = TextClassification(problem="multi-label", **task)
    message = refused(task, data(train={"text": ["x", "y"], **columns}))
    assert all(word in message for word in words), message


def test_labels_that_train_does_not_have_and_names_to_keep_that_do_not_occur():
    task = TextClassification(problem="multi-label")
    splits = data(
        train={"text": ["x", "y"], "label": [["aa"], ["b"]]},
        test={"text": ["x"], "label": [["ab"]]},
    )
    message = refused(task, splits, keep=["aa", "c"])
    assert "data.test: 'label' has labels that train does not: ab. Train has: aa, b." in message
    assert "data.keep_labels names 'c'" in message


# ---- numbers as they are found ----


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], ["1", "2e0"]], ids=["int", "float", "text"])
def test_numbers_may_be_of_any_type(values):
    task = TextClassification(problem="regression")
    rows = task.check(data(train={"text": ["x", "y"], "label": values}))
    assert rows["train"]["label"][:] == [1.0, 2.0]
    assert task.names(rows) == ["label"]
    assert task.stratum is None


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0, None], "row 2: 'label' is None, no number"),
     ([1.0, float("nan")], "row 2: 'label' is nan"),
     ([1.0, float("inf")], "row 2: 'label' is inf"),
     (["1", "high"], "row 2: 'label' is 'high', no number"),
     ([True, False], "row 1: 'label' is True"),
     ([3, 3], "is 3 in every row; nothing can be learnt")],
    ids=["none", "nan", "inf", "word", "flag", "constant"],
)  # fmt: skip
def test_what_is_no_number_is_told_with_its_row(values, words):
    splits = data(train={"text": ["x", "y"], "label": values})
    assert words in refused(TextClassification(problem="regression"), splits)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([1.0, 2.0, 5.0], None),
     ([-8.0, 8.0], None),
     ([20_000.0, 44_000.0], "another unit: divide by 100000;"),
     ([200.0, 5_000.0, 900.0], "another unit: divide by 1000;"),
     ([310.0, 290.0, 306.0], "mean 302 and standard deviation 8.64099 (from 290 to 310)"),
     ([310.0, 290.0, 306.0], "another unit: subtract 302, then divide by 10;"),
     ([0.001, -0.002, 0.004], "another unit: divide by 0.001;"),
     ([0.5, 0.502], "another unit: subtract 0.501, then divide by 0.001;"),
     ([3.0, 3.0], None), ([], None)],
)  # fmt: skip
def test_numbers_far_from_one_are_told_with_a_remedy(numbers, words):
    told = far_from_one("area", numbers)
    assert (told is None) if words is None else (words in told)


@pytest.mark.parametrize("spread", [1e-6, 0.003, 0.4, 7.0, 90.0, 2e5])
@pytest.mark.parametrize("mean", [-4e6, -30.0, 0.0, 0.6, 12.0, 1999.0, 5e7])
def test_after_the_remedy_numbers_are_near_one(mean, spread):
    numbers = mean + spread * np.array([-1.5, 0.2, 0.4, 0.9])
    told = far_from_one("area", numbers) or ""
    for word, undo in (("subtract ", np.subtract), ("divide by ", np.divide)):
        if word in told:
            numbers = undo(numbers, float(re.split("[,;]", told.partition(word)[2])[0]))
    assert far_from_one("area", numbers) is None


def test_a_run_tells_that_its_numbers_are_far_from_one(tmp_path, caplog):
    areas = [(text, 5000 * score) for text, score in SCORED]
    run(recipe_of(tmp_path / "far", REGRESSION, areas, "score"))
    assert caplog.text.count("data.train: 'score' has mean") == 1
    caplog.clear()
    run(recipe_of(tmp_path / "near", REGRESSION, SCORED, "score"))
    assert "has mean" not in caplog.text


def test_numbers_have_no_classes_to_keep_or_to_cap(tmp_path):
    task = TextClassification(problem="regression")
    good = data(train={"text": ["x", "y"], "label": [1, 2]})
    assert "data.keep_labels" in refused(task, good, keep=["1", "2"])
    with pytest.raises(DataError, match="data.per_class: this task has no classes"):
        run(recipe_of(tmp_path, REGRESSION, SCORED, "score", data={"per_class": 2}))
    assert not (tmp_path / "out").exists()


# ---- keys ----


def test_smoothing_is_refused_where_there_is_no_one_class(tmp_path):
    training = {"label_smoothing_factor": 0.1}
    with pytest.raises(RecipeError, match="label_smoothing_factor: 0.1 is for one class"):
        run(recipe_of(tmp_path, MULTI, TAGGED, "label", training=training))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "words"),
    [({"threshold": 0.5}, "threshold is for problem: multi-label; this is single-label"),
     ({"problem": "regression", "positive": "a"}, "positive is for problem: single-label"),
     ({"problem": "multi-label", "class_weights": "balanced"}, "class_weights is for"),
     ({"label": ["a", "b"]}, "several are for problem: multi-label"),
     ({"problem": "multi-label", "label": ["a", "a"]}, "two or more different columns")],
    ids=["threshold", "positive", "weights", "columns", "twice"],
)  # fmt: skip
def test_keys_of_another_problem_are_refused(tmp_path, task, words):
    path = text_recipe(tmp_path)
    blocks = yaml.safe_load(path.read_text("utf-8"))
    blocks["task"] |= task
    path.write_text(yaml.safe_dump(blocks), "utf-8")
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    assert "task" in str(error.value)
    assert words in str(error.value)


def test_the_class_for_f1_must_be_one():
    task = TextClassification(positive="yess")
    message = refused(task, data(train={"text": ["x", "y"], "label": ["yes", "no"]}))
    assert message == (
        "task.positive: 'yess' is no class of the data. Choices: no, yes. Did you mean 'yes'?"
    )
    assert TextClassification(positive=1).answer.positive == "1"
    assert "f1" in task.metric_names
    assert "f1" not in TextClassification().metric_names


# ---- metrics: the libraries' numbers, whatever the batches ----


@pytest.mark.parametrize("size", [1, 7, 40])
def test_metrics_of_many_labels_are_those_of_scikit_learn(size):
    logits = torch.randn(40, 4)
    labels = (torch.randn(40, 4) > 0.5).float()
    labels[:, 3], logits[:, 3] = 0, -9  # never there, never said
    metric = StreamingManyLabels(["a", "b", "c", "d"], 0.4)
    found = streamed(metric, logits, labels, size)
    said, true = (logits.sigmoid() > 0.4).numpy(), labels.numpy() > 0
    assert found["micro_f1"] == pytest.approx(f1_score(true, said, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(true[:, :3], said[:, :3], average="macro"))
    assert found["exact_match"] == pytest.approx((said == true).all(1).mean())
    recalls = recall_score(true, said, average=None, zero_division=0)
    assert [row["recall"] for row in metric.tables["per_class"]] == pytest.approx(list(recalls))
    assert [row["count"] for row in metric.tables["per_class"]] == true.sum(0).tolist()
    assert streamed(metric, logits, labels, size) == found  # a second pass starts anew


@pytest.mark.parametrize("size", [1, 7, 40])
def test_metrics_of_numbers_are_those_of_scipy(size):
    given, true = torch.randn(40, 1), torch.randn(40)
    pair = given[:, 0].double().numpy(), true.double().numpy()
    found = streamed(StreamingNumbers(), given, true, size)
    assert found["pearson"] == pytest.approx(pearsonr(*pair).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(*pair).statistic)
    assert found["mse"] == pytest.approx(mean_squared_error(*pair))


def test_correlation_with_a_constant_is_not_defined():
    found = streamed(StreamingNumbers(), torch.ones(4, 1), torch.randn(4), 2)
    assert np.isnan(found["pearson"])
    assert np.isnan(found["spearman"])
    assert found["mse"] > 0


@pytest.mark.parametrize("metric", [StreamingManyLabels(["a", "b"], 0.5), StreamingNumbers()],
                         ids=["labels", "numbers"])  # fmt: skip
def test_outputs_that_are_not_finite_are_told(metric):
    with pytest.raises(DataError, match="diverged"):
        streamed(metric, torch.full((2, 2), torch.inf), torch.zeros(2, 2), 2)


def test_matthews_and_f1_of_a_class_are_those_of_scikit_learn():
    logits, labels = torch.randn(50, 3), torch.randint(3, (50,))
    found = streamed(StreamingClassification(["a", "b", "c"], "b"), logits, labels, 8)
    said = logits.argmax(-1)
    assert found["matthews"] == pytest.approx(matthews_corrcoef(labels, said))
    assert found["f1"] == pytest.approx(f1_score(labels == 1, said == 1))


def test_no_number_is_taken_for_a_label_to_ignore():
    labels = torch.tensor([-100.0, 1.0])
    assert count_items(SimpleNamespace(model=None), {"labels": labels}) == 2


# ---- class weights ----


def test_every_class_counts_the_same_and_the_mean_weight_is_one():
    labels = [0] * 6 + [1] * 3 + [2]
    weights = BalancedLoss(labels, 3).weights
    counts = torch.tensor([6.0, 3.0, 1.0])
    assert (weights * counts).tolist() == pytest.approx([10 / 3] * 3)
    assert float(weights[labels].mean()) == pytest.approx(1.0)


def test_the_weighted_loss_is_the_same_however_a_step_is_cut():
    loss = BalancedLoss([0, 0, 0, 1, 2, 2], 3)
    logits, labels = torch.randn(8, 3), torch.tensor([0, 1, 2, 0, 0, 1, 2, 1])
    whole = loss({"logits": logits}, labels, num_items_in_batch=8)
    parts = [loss({"logits": logits[part]}, labels[part], num_items_in_batch=8)
             for part in (slice(0, 3), slice(3, 4), slice(4, 8))]  # fmt: skip
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)
    torch_weighted = torch.nn.functional.cross_entropy(
        logits, labels, loss.weights.float(), reduction="sum"
    )
    assert float(whole) == pytest.approx(float(torch_weighted) / 8, rel=1e-6)


def test_an_evaluation_is_not_weighted():
    loss, logits, labels = (
        BalancedLoss([0, 0, 1], 2, 0.1),
        torch.randn(4, 2),
        torch.tensor([0, 1, 1, 1]),
    )
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
        assert float(loss({"logits": logits}, labels)) == pytest.approx(float(plain))
    assert float(loss({"logits": logits}, labels)) != pytest.approx(float(plain))


def test_steps_with_balanced_weights_are_the_same_for_any_accumulation(tmp_path):
    task = {"type": "text-classification", "class_weights": "balanced"}
    found = []
    for batch, accumulation in ((8, 1), (4, 2)):
        folder = tmp_path / f"by{batch}"
        folder.mkdir()
        torch.manual_seed(0)
        recipe = recipe_of(
            folder, task, ROWS[5:], "label",
            model={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
            training={"per_device_train_batch_size": batch, "optim": "sgd", "max_steps": 4,
                      "gradient_accumulation_steps": accumulation, "learning_rate": 0.1},
        )  # fmt: skip
        run(recipe)
        found.append(load_file(folder / "out" / "model" / "model.safetensors"))
    assert max(float((found[0][n] - found[1][n]).abs().max()) for n in found[0]) < 1e-6


@pytest.mark.parametrize(
    ("head", "measured"),
    [({"num_labels": 1}, "pairwise similarity"),
     ({"num_labels": 3, "problem_type": "multi_label_classification"}, "pairwise similarity"),
     ({"num_labels": 3}, "original head")],
    ids=["number", "labels", "classes"],
)  # fmt: skip
def test_a_source_whose_head_tells_no_classes_apart_is_compared_by_its_geometry(
    tmp_path, head, measured
):
    source_folder(tmp_path / "source")
    config = AutoConfig.from_pretrained(tmp_path / "source", **head)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "source")
    report = run(recipe_of(tmp_path, REGRESSION, SCORED, "score", training={"max_steps": 2}))
    assert report.data["retention"]["by"] == measured


def test_the_texts_a_model_was_most_wrong_about_are_shown():
    task = TextClassification(text=["question", "reply"])
    long = "why " * 200
    rows = Dataset.from_dict({"question": ["what", long, "who"], "reply": ["a", "b", "c"]})
    metrics = task.metrics(["yes", "no"])
    logits = torch.tensor([[1.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    batch = SimpleNamespace(predictions=logits, label_ids=torch.tensor([1, 1, 1]))
    metrics(batch, True)
    (found,) = task.examples(metrics, None, None, rows).values()
    assert [row["reply"] for row in found] == ["b", "a"]  # the surest first; the right one not
    assert found[0]["question"] == f"{long[:400]} …"
    assert found[1] == {"question": "what", "reply": "a", "mistake": "no, taken for yes (0.73)"}
