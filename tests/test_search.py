"""Searches: trials go on after a stop, the pick keeps what is asked, and the best is a recipe."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from test_cli import refused
from tiny_run import text_recipe

from hf_sft.cli import main
from hf_sft.searching import study
from hf_sft.searching.best import best
from hf_sft.searching.search import search
from hf_sft.searching.search_table import ordered
from hf_sft.searching.space import Search, space
from hf_sft.searching.trial_process import Trial, train

OVER = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "freeze": [None, {"type": "linear-probe"}],
}


def recipe_in(place, **asked):
    return text_recipe(
        place, search={"over": OVER, "trials": 3, **asked}, training={"num_train_epochs": 1}
    )


def row(number, target, retention):
    return {"number": number, "target": target, "retention": retention}


def test_the_best_keeps_at_least_what_is_asked():
    rows = [row(0, 0.9, 0.2), row(1, 0.7, 0.8), row(2, 0.8, 0.9), row(3, 0.8, 0.95)]
    rows += [row(4, None, 1.0), row(5, 0.99, None)]
    assert best(rows[:4], True, None)["number"] == 0
    assert best(rows, True, 0.8)["number"] == 3
    assert best(rows, False, 0.8)["number"] == 1
    assert best(rows, True, 0.96) is None


def test_of_equal_scores_the_one_that_keeps_more_is_best_and_first_in_the_table():
    rows = [
        row(0, 0.8, None),
        row(1, 0.8, 0.5),
        row(2, 0.8, 0.7),
        row(3, 0.8, 0.7),
        row(4, None, 1),
    ]
    for greater in (True, False):
        assert best(rows, greater, None)["number"] == 2
        told = ordered({"trials": rows, "greater_is_better": greater})
        assert [r["number"] for r in told] == [2, 3, 1, 0, 4]


@pytest.mark.parametrize("key", ["lambda", "weight"])
def test_the_strength_is_searched_by_the_name_it_has(key):
    found = space({"penalty": {"type": "some", key: 10.0}}, Search())
    assert (found[f"penalty.{key}"].low, found[f"penalty.{key}"].high) == (0.1, 1000.0)
    assert set(found) == {"training.learning_rate", f"penalty.{key}", "freeze"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    place = tmp_path_factory.mktemp("searched")
    path = recipe_in(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        data, folder = search(path)
    return path, data, folder


def test_every_trial_is_told_and_none_leaves_a_model(searched):
    path, data, folder = searched
    assert [r["state"] for r in data["trials"]] == ["finished"] * 3, data["trials"]
    assert data["trials"] == json.loads((folder / "search.json").read_text("utf-8"))["trials"]
    assert not list(folder.rglob("*.safetensors"))
    assert all(r["seen"] for r in data["trials"])
    page = (folder / "search.html").read_text("utf-8")
    assert "mathdefault" not in page  # a logarithmic axis names numbers, not formulae
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert str(path.parent) not in page
    assert page.count("<svg") >= 2
    assert "4 finished trials" in page  # why it says nothing of what matters
    shown = data["recipe"]["data"]  # named as the recipe names it, not from the search's folder
    assert (shown["train"], shown["test"]) == ("train.csv", "test.csv")


def test_the_best_recipe_is_an_ordinary_one_that_gives_the_same(searched, capsys):
    _, data, folder = searched
    raw = yaml.safe_load((folder / "best.yaml").read_text("utf-8"))
    assert "search" not in raw
    assert main(["run", str(folder / "best.yaml")]) == 0
    report = json.loads((folder / "best/report.json").read_text("utf-8"))
    chosen = next(r for r in data["trials"] if r["number"] == data["best"])
    assert report["metrics"]["validation"][data["metric"]] == pytest.approx(chosen["target"])


def test_more_trials_go_on_and_another_search_is_refused(searched, monkeypatch, capsys):
    path, data, _ = searched
    monkeypatch.chdir(path.parent)
    again, _ = search(path, ["search.trials=4"])
    assert again["trials"][:3] == data["trials"]
    assert len(again["trials"]) == 4
    assert "--overwrite" in refused(capsys, "search", path, "training.weight_decay=0.1")
    assert "search.over" in refused(capsys, "search", path, "search.over={freeze: [{type: no}]}")


def test_what_was_under_way_is_run_again_with_the_same_values(searched, monkeypatch):
    path, _, folder = searched
    monkeypatch.chdir(path.parent)
    optuna = study.library()
    held = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / study.FILE}")
    lost = held.ask()
    values = lost.suggest_float("training.learning_rate", 1e-4, 1e-1, log=True)
    lost.suggest_categorical("freeze", ["freeze=null", "freeze={type: linear-probe}"])
    count = len(study.rows(held))
    data, _ = search(path, [f"search.trials={count + 1}"])
    assert len(data["trials"]) == count + 1
    assert data["trials"][-1]["params"]["training.learning_rate"] == values
    assert (folder / f"trial-{data['trials'][-1]['number']}.log").is_file()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_the_seconds_of_a_stopped_trial_count(tmp_path, monkeypatch, stop):
    monkeypatch.chdir(tmp_path)
    path, clock, parts = recipe_in(tmp_path, trials=1), [0.0], [2.0, 3.0, 5.0]

    def trains(trial, prunes):
        clock[0] += parts.pop(0)
        prunes(1, 0.5)
        if parts:
            clock[0] += 0.25
            raise stop
        return {"target": 0.5, "retention": 1.0}

    monkeypatch.setattr("hf_sft.searching.search.train", trains)
    monkeypatch.setattr("hf_sft.searching.search.time.monotonic", lambda: clock[0])
    for _ in range(2):
        with pytest.raises(stop):
            search(path)
        clock[0] += 1000  # until someone goes on
    data, _ = search(path)
    assert [row["seconds"] for row in data["trials"]] == [2.25 + 3.25 + 5.0]


def test_without_optuna_the_remedy_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "hf-sft[search]" in refused(capsys, "search", recipe_in(tmp_path))


@pytest.mark.slow
def test_a_killed_search_goes_on(tmp_path):
    path = recipe_in(tmp_path)
    command = [sys.executable, "-m", "hf_sft", "search", str(path)]
    started = subprocess.Popen(command, cwd=tmp_path)
    second = tmp_path / "out/search/trial-1.log"
    deadline = time.monotonic() + 300
    while not second.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "out/search/search.json").read_text("utf-8"))
    assert [r["number"] for r in data["trials"]] == [0, 2, 3]  # 1 was under way, and is 2 now


def test_a_trial_that_falls_behind_is_pruned_told_and_not_the_best(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    path = recipe_in(tmp_path, trials=6)
    scores = 5 * [[0.5, 0.6]] + [[0.1, 0.9]]  # the median needs five

    def trains(trial, prunes):
        number = int(trial.log.stem.removeprefix("trial-"))
        for step, score in enumerate(scores[number], 1):
            if prunes(step, score):
                return {"pruned": True}
        return {"target": score, "retention": 1.0}

    monkeypatch.setattr("hf_sft.searching.search.train", trains)
    data, folder = search(path)
    last = data["trials"][-1]
    assert [row["state"] for row in data["trials"]] == ["finished"] * 5 + ["pruned"]
    assert (last["target"], last["seen"], last["problem"]) == (None, [[1, 0.1]], None)
    assert data["best"] != last["number"]
    assert "trial 5 pruned: below the median of those before it" in caplog.text
    assert "pruned" in (folder / "search.html").read_text("utf-8")


def test_a_pruned_trial_ends_its_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epochs = {"num_train_epochs": 3, "eval_strategy": "epoch", "save_strategy": "epoch"}
    path = text_recipe(tmp_path, training={**epochs, "load_best_model_at_end": True})
    words = ("data.validation_fraction=0.25", f"training.output_dir={tmp_path / 'trial'}")
    order = Trial(path, tmp_path, words, "accuracy", tmp_path / "trial.log")
    heard = []
    assert train(order, lambda step, _: heard.append(step) or True) == {"pruned": True}
    assert len(heard) == 1
