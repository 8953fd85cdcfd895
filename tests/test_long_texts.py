"""Long texts: windows whose answers are averaged, and what is told where texts are cut."""

import logging

import pytest
import torch
import yaml
from datasets import Dataset, disable_progress_bars
from tiny_run import ROWS, WORDS, source_folder, text_recipe, write_csv
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    pipeline,
)

from hf_sft import TrainLast, saved
from hf_sft.errors import DataError, RecipeError
from hf_sft.recipe import Recipe
from hf_sft.running import prepare, run
from hf_sft.tasks import TextClassification
from hf_sft.tasks.long_texts import AveragedWindows, averaged, windows_of
from hf_sft.training_arguments import training_arguments

disable_progress_bars()
LONG = [
    (" ".join([text, *WORDS[: 1 + 3 * (i % 4)]]), label) for i, (text, label) in enumerate(ROWS)
]
WINDOWS = {"max_length": 6, "long_texts": "windows", "stride": 1}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(source_folder(tmp_path_factory.mktemp("source")))


def recipe(folder, rows=LONG, header=("text", "label"), **changes):
    path = text_recipe(folder, **changes)
    write_csv(folder / "train.csv", rows, header)
    write_csv(folder / "test.csv", rows[::3], header)
    return path


# ---- windows ----


@pytest.mark.parametrize(("limit", "stride"), [(6, 0), (6, 2), (5, 1), (40, 10)])
def test_windows_hold_all_of_a_text_and_share_the_stride(tokenizer, limit, stride):
    texts = [" ".join(WORDS[:n]) for n in (1, 4, 9)]
    columns, owners = windows_of(tokenizer, texts, limit, stride)
    for number, text in enumerate(texts):
        parts = [ids[1:-1] for ids, o in zip(columns["input_ids"], owners, strict=True)
                 if o == number]  # fmt: skip
        joined = parts[0] + [token for part in parts[1:] for token in part[stride:]]
        assert joined == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert all(len(part) <= limit - 2 for part in parts)
    assert owners == sorted(owners)


def test_an_average_is_the_mean_of_a_texts_windows():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    assert averaged(outputs, [0, 0, 1], 2).tolist() == [[2.0, 4.0], [5.0, 5.0]]


class Seen:
    """An inner metric that keeps what it is given."""

    tables = {}

    def __init__(self):
        self.rows = []

    def __call__(self, batch, compute_result):
        self.rows += zip(batch.predictions.tolist(), batch.label_ids.tolist(), strict=True)
        return {"n": len(self.rows)} if compute_result else {}


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_metrics_see_texts_however_batches_cut_them(size):
    owners, labels = [0, 0, 0, 1, 2, 2], [7, 7, 7, 8, 9, 9]
    logits = torch.arange(12.0).view(6, 2)
    inner = Seen()
    metric = AveragedWindows(inner, lambda: iter([(o, [o]) for o in owners]), None)
    for _ in range(2):  # twice: it begins anew
        for at in range(0, 6, size):
            batch = EvalPrediction(logits[at : at + size], torch.tensor(labels[at : at + size]))
            found = metric(batch, at + size >= 6)
    assert found == {"n": 6}
    assert inner.rows[:3] == [([2.0, 3.0], 7), ([6.0, 7.0], 8), ([9.0, 10.0], 9)]
    assert inner.rows[3:] == inner.rows[:3]


def test_windows_of_other_rows_are_refused():
    metric = AveragedWindows(Seen(), lambda: iter([(0, [5]), (1, [6])]), 0)
    ids = {"input_ids": torch.tensor([[6, 0], [5, 0]])}
    with pytest.raises(DataError, match="another order"):
        metric(EvalPrediction(torch.zeros(2, 2), torch.zeros(2), inputs=ids), True)
    metric = AveragedWindows(Seen(), lambda: iter([(0, [5]), (1, [6])]), 0)
    with pytest.raises(DataError, match="another order"):
        metric(EvalPrediction(torch.zeros(1, 2), torch.zeros(1)), True)


# ---- whole runs ----

PROBLEMS = {
    "single-label": (LONG, {}, "accuracy"),
    "multi-label": ([(t, f"{y};long" if len(t) > 30 else y) for t, y in LONG],
                    {"problem": "multi-label", "label_separator": ";"}, "micro_f1"),
    "regression": ([(t, float(len(t))) for t, _ in LONG], {"problem": "regression"}, "mse"),
}  # fmt: skip


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_run_counts_texts_and_predicts_one_answer_for_each(tmp_path, problem):
    rows, keys, metric = PROBLEMS[problem]
    path = recipe(tmp_path, rows, task={**WINDOWS, **keys})
    report = run(Recipe.load(path)).data
    assert report["splits"] == {"train": len(LONG), "test": len(LONG[::3])}
    (told,) = report["cut_texts"]["test"]
    assert (told["texts"], told["cut"]) == (len(LONG[::3]), 0)
    assert told["windows"] > told["texts"]

    out = tmp_path / "answers.jsonl"
    saved.predict(tmp_path / "out", tmp_path / "test.csv", out, 4)
    found = Dataset.from_json(str(out), cache_dir=str(tmp_path / "cache"))
    assert found["text"][:] == [text for text, _ in LONG[::3]]
    if problem == "single-label":
        right = [y == a for (_, y), a in zip(LONG[::3], found["label"], strict=True)]
        assert report["metrics"]["test"]["accuracy"] == pytest.approx(sum(right) / len(right))
        assert sum(c["count"] for c in report["tables"]["test"]["per_class"]) == len(LONG[::3])
    if problem == "regression":
        wanted = [float(len(t)) for t, _ in LONG[::3]]
        errors = [(a - b) ** 2 for a, b in zip(found["value"], wanted, strict=True)]
        assert report["metrics"]["test"]["mse"] == pytest.approx(
            sum(errors) / len(errors), rel=1e-4
        )
    if problem == "multi-label":
        assert report["metrics"]["test"]["micro_f1"] > 0
    assert f"{report['metrics']['test'][metric]:.4f}" in saved.evaluate(tmp_path / "out")


def test_an_answer_is_the_mean_of_what_the_pipeline_says_of_each_window(tmp_path):
    run(Recipe.load(recipe(tmp_path, task=WINDOWS)))
    out, folder = tmp_path / "answers.jsonl", tmp_path / "out" / "model"
    saved.predict(tmp_path / "out", tmp_path / "test.csv", out, 3)
    found = Dataset.from_json(str(out), cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ask = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None,
                   function_to_apply="none", device="cpu")  # fmt: skip
    for row in found.select(range(4)):
        words = row["text"].split()
        parts, at = [], 0
        while True:
            parts.append(" ".join(words[at : at + 4]))
            if at + 4 >= len(words):
                break
            at += 3
        logits = [{o["label"]: o["score"] for o in answer} for answer in ask(parts)]
        means = torch.tensor([sum(z[n] for z in logits) / len(logits)
                              for n in model.config.label2id])  # fmt: skip
        assert row["probability"] == pytest.approx(float(means.softmax(-1).max()), abs=1e-5)


def test_early_stopping_and_train_last_work_on_windows(tmp_path):
    path = recipe(
        tmp_path, task=WINDOWS, freeze={"type": "train-last", "count": 1},
        early_stopping={"patience": 1}, training={"per_device_eval_batch_size": 3},
    )  # fmt: skip
    report = run(Recipe.load(path)).data
    assert report["freeze"]["verified_unchanged"]
    assert report["metrics"]["validation"]["accuracy"] >= 0
    assert isinstance(Recipe.load(path).freeze, TrainLast)


@pytest.mark.parametrize(
    ("task", "said"),
    [({"stride": 3}, "stride is for long_texts: windows"),
     ({**WINDOWS, "text": ["text", "other"]}, "one column of text"),
     ({**WINDOWS, "stride": 4}, "task.stride: 4 .* below 4")],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, task, said):
    with pytest.raises((DataError, RecipeError), match=said):
        run(Recipe.load(recipe(tmp_path, task=task)))
    assert not (tmp_path / "out").exists()


def test_only_windows_need_the_datas_order():
    assert TextClassification(**WINDOWS).in_order
    assert not TextClassification().in_order


# ---- cut texts are told ----


def test_cut_texts_are_told_before_training_and_kept(tmp_path, caplog):
    loaded = Recipe.load(recipe(tmp_path, task={"max_length": 8}))
    with caplog.at_level(logging.WARNING):
        found = prepare(loaded, training_arguments(loaded)).cut_texts
    longest = max(len(text.split()) for text, _ in LONG) + 2
    cut = sum(len(text.split()) + 2 > 8 for text, _ in LONG)
    assert found["train"] == [
        {"what": "texts", "texts": len(LONG), "cut": cut, "limit": 8, "longest": longest}
    ]
    line = f"task.max_length: {cut} of {len(LONG)} texts are cut at 8 tokens (the longest has"
    assert f"{line} {longest}). With task.long_texts: windows nothing is lost." in caplog.text


def test_nothing_is_told_where_all_fits(tmp_path, caplog):
    loaded = Recipe.load(recipe(tmp_path, ROWS))
    with caplog.at_level(logging.WARNING):
        found = prepare(loaded, training_arguments(loaded)).cut_texts
    assert "are cut" not in caplog.text
    assert found["test"][0]["cut"] == 0


def test_a_pair_is_measured_as_one(tmp_path, caplog):
    rows = [(text, "red oak", label) for text, label in LONG]
    path = recipe(tmp_path, rows, ("text", "other", "label"))
    raw = yaml.safe_load(path.read_text("utf-8"))
    raw["task"] |= {"text": ["text", "other"], "max_length": 8}
    path.write_text(yaml.safe_dump(raw), "utf-8")
    loaded = Recipe.load(path)
    with caplog.at_level(logging.WARNING):
        found = prepare(loaded, training_arguments(loaded)).cut_texts["train"][0]
    assert found["longest"] == max(len(t.split()) for t, _ in LONG) + 5
    assert "pairs are cut" in caplog.text
    assert "long_texts" not in caplog.text
