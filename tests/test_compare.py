"""Comparisons: arms share rows and order, work once done is kept, and no arm takes another down."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from test_cache import counted_rows, first_module
from test_cli import refused
from tiny_run import ROWS, source_folder, text_recipe, write_csv

from hf_sft import running
from hf_sft.cli import main
from hf_sft.comparing import compare_charts, compare_table
from hf_sft.comparing.cells import cells, folder
from hf_sft.comparing.compare import compare, refuse_failures
from hf_sft.comparing.compare_page import render
from hf_sft.comparing.reuse import Now, State, state
from hf_sft.errors import UserError
from hf_sft.output_folder import data_of
from hf_sft.recipe import Recipe
from hf_sft.running import prepare
from hf_sft.training_arguments import training_arguments

ARMS = {"full": None, "probe": {"freeze": {"type": "linear-probe"}, "penalty": None}}
QUICK = {"num_train_epochs": 1, "save_strategy": "no"}


def recipe_in(place, **compare):
    block = {"arms": ARMS, "seeds": 1, **compare}
    return text_recipe(place, compare=block, training=QUICK)


def files(place):
    """Path -> content and time of change of all files of finished runs."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in place.rglob("seed-*/**/*")
        if path.is_file()
    }


def numbers(data):
    """What a comparison measured, without what it cost."""
    return [
        {key: run[key] for key in ("arm", "seed", "size", "state", "metrics", "retention")}
        for run in data["runs"]
    ]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two arms, two seeds and two sizes, with two jobs; in the recipe's own folder."""
    place = tmp_path_factory.mktemp("compared")
    path = recipe_in(place, seeds=2, sizes={"data.per_class": [4, 8]})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return path, compare(path, jobs=2)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """Two finished arms of one seed."""
    place = tmp_path_factory.mktemp("smallest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return place, compare(recipe_in(place))


@pytest.fixture
def one(smallest, tmp_path, monkeypatch):
    """A copy of them, to change."""
    place, data = smallest
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return recipe_in(tmp_path), data


def test_arms_of_a_pair_train_on_the_same_rows_in_the_same_order(tmp_path):
    path = recipe_in(tmp_path, seeds=[1, 2], sizes={"data.per_class": [3]})
    orders = {}
    for cell in cells(Recipe.load(path), ()):
        prepared = prepare(cell.recipe, training_arguments(cell.recipe))
        batches = list(prepared.trainer.get_train_dataloader())
        told = (batches[0]["input_ids"].tolist(), [b["labels"].tolist() for b in batches])
        orders.setdefault(cell.seed, []).append((prepared.data["train"]["text"], told))
    for arms in orders.values():
        assert len(arms) == 2
        assert arms[0] == arms[1]
    assert orders[1][0] != orders[2][0]


def test_every_cell_is_an_ordinary_run_in_a_folder_of_its_own(compared, capsys):
    path, data = compared
    assert [run["state"] for run in data["runs"]] == ["finished"] * 8
    place = folder(Recipe.load(path))
    assert json.loads((place / "compare.json").read_text("utf-8")) == data
    for run in data["runs"]:
        own = place / run["folder"]
        recorded = yaml.safe_load((own / "recipe.yaml").read_text("utf-8"))
        assert recorded["data"]["per_class"] == run["size"]
        assert recorded["training"]["seed"] == recorded["data"]["split_seed"] == run["seed"]
        report = json.loads((own / "report.json").read_text("utf-8"))
        assert report["splits"]["train"] == 2 * run["size"]
        assert report["metrics"]["test"]["accuracy"] == run["target"]
        assert data_of(own) == data_of(place / "full" / run["folder"].partition("/")[2])
    assert main(["show", str(place / data["runs"][0]["folder"])]) == 0
    assert "frozen" in capsys.readouterr().out


def test_models_and_checkpoints_of_arms_do_not_stay(compared):
    path, _ = compared
    kept = [file for file in folder(Recipe.load(path)).rglob("*") if file.is_file()]
    assert not [file for file in kept if file.suffix in (".safetensors", ".pt", ".bin")]


def test_the_summary_is_that_of_the_runs(compared):
    _, data = compared
    for row in data["summary"]:
        own = [r for r in data["runs"] if (r["arm"], r["size"]) == (row["arm"], row["size"])]
        assert row["target"]["mean"] == pytest.approx(sum(r["target"] for r in own) / 2)
        assert row["target"]["count"] == 2
        if row["arm"] == data["baseline"] == "full":
            assert row["target_difference"] is None
            continue
        full = [r for r in data["runs"] if (r["arm"], r["size"]) == ("full", row["size"])]
        base = {r["seed"]: r for r in full}
        pairs = [r["retention"] - base[r["seed"]]["retention"] for r in own]
        assert row["retention_difference"]["mean"] == pytest.approx(sum(pairs) / 2)
    probe = [row for row in data["summary"] if row["arm"] == "probe"]
    assert all(row["retention"]["mean"] == pytest.approx(1) for row in probe)
    assert all(row["front"] for row in probe)  # nothing can keep more


def test_the_page_needs_no_other_file_and_names_no_path(compared):
    path, data = compared
    page = (folder(Recipe.load(path)) / "compare.html").read_text("utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert str(path.parent) not in page
    assert page.count("<svg") == 3  # a picture for each size, and the curve over sizes
    for word in ("baseline", "probe", "data.per_class = 4", "color-scheme"):
        assert word in page
    hostile = {**data, "title": "<script>alert(1)</script>"}
    hostile["runs"] = [{**data["runs"][0], "state": "failed", "problem": "<img src=x>"}]
    assert "<script" not in render(hostile)
    assert "<img" not in render(hostile)


def test_an_arm_far_from_the_others_is_in_the_legend_and_leaves_them_their_scale():
    def row(arm, mean, kept=None):
        spread = kept and {"mean": kept, "deviation": 0.0}
        return {"arm": arm, "target": {"mean": mean, "deviation": 0.0}, "retention": spread}

    data = {"arms": ["a", "b", "c"], "metric": "accuracy", "retention_by": "spearman"}
    points = [row("a", 0.80, 0.6), row("b", 0.84, 0.9)]
    assert "c: at 0.386" in compare_charts.pareto(data, [*points, row("c", 0.386)])
    assert "c: at" not in compare_charts.pareto(data, [*points, row("c", 0.77)])


def test_the_table_states_the_spread_and_the_pairs(compared):
    _, data = compared
    shown = compare_table.text(data)
    assert shown.count("data.per_class = ") == 2
    assert "95 % t interval" in shown
    assert re.search(r"probe \*? .*\d ± \d.*\[[-+]\d.*, [-+]\d", shown)


def test_what_is_finished_is_reused_and_not_written_again(one, capsys):
    path, data = one
    before = files(path.parent)
    assert main(["compare", str(path)]) == 0
    assert files(path.parent) == before
    assert json.loads((path.parent / "out/compare/compare.json").read_text("utf-8")) == data
    assert "probe" in capsys.readouterr().out
    added = {**ARMS, "slow": {"training.learning_rate": 0.001}}
    path = recipe_in(path.parent, arms=added)  # arms may be added at any time
    more = compare(path)
    assert [run["state"] for run in more["runs"]] == ["finished"] * 3
    assert {p: c for p, c in files(path.parent).items() if "/slow/" not in str(p)} == before


@pytest.mark.parametrize("changed", ["recipe", "data", "source"])
def test_a_run_of_something_else_is_neither_reused_nor_replaced_unasked(one, capsys, changed):
    path, _ = one
    before = files(path.parent)
    words = []
    if changed == "recipe":
        words = ["training.learning_rate=0.02"]
    elif changed == "data":
        write_csv(path.parent / "train.csv", ROWS[1:])
    else:
        torch.manual_seed(99)
        source_folder(path.parent / "source")  # drawn anew
    message = refused(capsys, "compare", path, *words)
    assert "2 folders" in message
    assert "--overwrite" in message
    assert files(path.parent) == before
    assert main(["compare", str(path), *words, "--overwrite"]) == 0
    after = files(path.parent)
    reports = [p for p in before if p.name == "report.json"]
    assert reports
    assert all(after[p] != before[p] for p in reports)


def test_an_arm_that_fails_is_told_and_the_others_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = {"freeze": {"type": "train-last", "count": 99}}
    path = recipe_in(tmp_path, arms={"a-wrong": wrong, **ARMS}, baseline="full")  # comes first
    assert main(["compare", str(path)]) == 2
    told = capsys.readouterr()
    assert "1 of 3 runs failed" in told.err
    assert "a-wrong/seed-0: freeze.count: 99 blocks" in told.err
    assert "Traceback" not in told.err
    assert "1 failed" in told.out
    data = json.loads((tmp_path / "out/compare/compare.json").read_text("utf-8"))
    assert [run["state"] for run in data["runs"]] == ["failed", "finished", "finished"]
    page = (tmp_path / "out/compare/compare.html").read_text("utf-8")
    assert "99 blocks are asked for" in page
    with pytest.raises(UserError, match="tries them again"):
        refuse_failures(data)


def test_one_job_gives_what_two_give(compared, tmp_path, monkeypatch):
    _, data = compared
    monkeypatch.chdir(tmp_path)
    path = recipe_in(tmp_path, sizes={"data.per_class": [4]})
    (tmp_path / "source").rename(tmp_path / "unused")
    (tmp_path / "source").symlink_to(compared[0].parent / "source")
    ours = numbers(compare(path, jobs=1))
    theirs = [run for run in numbers(data) if (run["seed"], run["size"]) == (0, 4)]
    assert ours == theirs


def test_models_are_kept_when_asked_also_afterwards(one):
    path, _ = one
    compare(path, keep_models=True)
    for arm in ARMS:
        assert (path.parent / f"out/compare/{arm}/seed-0/model/model.safetensors").is_file()
    before = files(path.parent)
    compare(path)
    assert files(path.parent) == before


def test_a_comparison_and_a_run_of_the_same_recipe_do_not_meet(one, capsys):
    path, _ = one
    before = files(path.parent)
    assert main(["run", str(path)]) == 0
    assert main(["compare", str(path)]) == 0
    assert files(path.parent) == before


def test_several_processes_are_started_by_compare_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--jobs" in refused(capsys, "compare", recipe_in(tmp_path))


def test_an_unfinished_run_from_another_source_is_run_anew_when_asked(one):
    path, data = one
    cell = cells(Recipe.load(path), ())[0]
    report = cell.folder / "report.json"
    text = report.read_text("utf-8").replace(data["runs"][0]["fingerprint"], "0" * 64)
    report.write_text(text, "utf-8")
    assert state(cell, Now(), keep_models=False) is State.OTHER
    report.unlink()
    assert state(cell, Now(), keep_models=False) is State.TO_RUN
    again = Recipe.load(path, [*cell.overrides, "training.save_strategy=epoch"])
    running.run(again, overwrite=True)
    report.unlink()
    (point,) = (cell.folder / "checkpoints").glob("checkpoint-*/trainer_state.json")
    text = point.read_text("utf-8")
    recorded = re.sub(r'("fingerprint": ")[0-9a-f]{64}', r"\g<1>" + "0" * 64, text)
    assert recorded != text
    assert state(replace(cell, recipe=again), Now(), keep_models=False) is State.TO_RUN
    point.write_text(recorded, "utf-8")
    assert state(replace(cell, recipe=again), Now(), keep_models=False) is State.OTHER


def test_arms_that_freeze_the_same_layers_compute_them_once(tmp_path):
    arms = {arm: {"freeze": {"type": "linear-probe"}, "training.learning_rate": rate}
            for arm, rate in (("fast", 0.01), ("slow", 0.001))}  # fmt: skip
    path = recipe_in(tmp_path, arms=arms)
    words = [f"cache={{folder: {tmp_path / 'cache'}}}", "training.num_train_epochs=3"]
    rows = {}
    for cell in cells(Recipe.load(path, words), words):
        trainer = prepare(cell.recipe, training_arguments(cell.recipe)).trainer
        with counted_rows(first_module(trainer)) as seen:
            trainer.train()
        rows[cell.arm] = sum(seen)
    trying = 30  # rows by which the way from stored features is proved
    assert rows["slow"] <= trying
    assert len(ROWS) <= rows["fast"] <= len(ROWS) + trying


@pytest.mark.slow
def test_a_killed_comparison_leaves_no_run_behind_and_goes_on(tmp_path):
    path = recipe_in(tmp_path, seeds=2)
    command = [sys.executable, "-m", "hf_sft", "compare", str(path)]
    started = subprocess.Popen(command, cwd=tmp_path)
    first = tmp_path / "out/compare/full/seed-0/report.html"
    second = tmp_path / "out/compare/probe/seed-0.log"
    deadline = time.monotonic() + 300
    while not (first.is_file() and second.is_file()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    before = first.stat().st_mtime_ns
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before
    data = json.loads((tmp_path / "out/compare/compare.json").read_text("utf-8"))
    assert [run["state"] for run in data["runs"]] == ["finished"] * 4


def test_show_puts_runs_beside_each_other(compared, capsys):
    path, data = compared
    place = folder(Recipe.load(path))
    runs = [place / f"{arm}/seed-1/n-4" for arm in ("full", "probe")]
    assert main(["show", *map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:30].strip(): line[30:].split() for line in lines}
    assert lines[0].split() == ["full/seed-1/n-4", "probe/seed-1/n-4"]
    assert rows["freeze.type"] == ["–", "linear-probe"]
    targets = {run["arm"]: run["target"] for run in data["runs"] if run["folder"].endswith("1/n-4")}
    told = [line.split() for line in lines if line.strip().startswith("test accuracy")]
    assert told == [["test", "accuracy", *(f"{targets[arm]:.4f}" for arm in ("full", "probe"))]]
    for same in ("output_dir", "data.train", "training.seed"):
        assert not [line for line in lines if same in line]
    block = next(line for line in lines if line.strip().startswith("bert.encoder.layer.1"))
    assert "%" in block
    assert block.endswith("0.000 %")
    assert main(["show", str(runs[0]), str(place)]) == 2
    assert "report.json is missing" in capsys.readouterr().err
