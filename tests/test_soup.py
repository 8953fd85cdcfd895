"""soup: runs of one source averaged; others refused."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_run import source_folder, text_recipe, write_csv

from hf_sft.cli import main


def one_run(folder, name, **changes):
    training = {"output_dir": str(folder / name), **changes.pop("training", {})}
    data = {"per_class": 8, **changes.pop("data", {})}
    recipe = text_recipe(folder, data=data, training=training, **changes)
    assert main(["run", str(recipe)]) == 0
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three siblings; the last learned nothing."""
    folder = tmp_path_factory.mktemp("runs")
    rates = {"slow": 0.003, "fast": 0.01, "idle": 0.0}
    return [one_run(folder, n, training={"learning_rate": rate}) for n, rate in rates.items()]


def saved(folder):
    return load_file(folder / "model" / "model.safetensors")


def cooked(runs, output, *options):
    words = [*map(str, runs), "--output", str(output), *options]
    assert main(["soup", *words]) == 0
    return json.loads((output / "soup.json").read_text("utf-8"))


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["soup", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_a_uniform_soup_is_the_mean_of_the_saved_models(runs, tmp_path, capsys):
    record = cooked(runs, tmp_path / "s")
    states = [saved(run) for run in runs]
    for name, tensor in saved(tmp_path / "s").items():
        wanted = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(tensor, wanted.float(), rtol=1e-6, atol=1e-8)
    made = record["soup"]
    assert [run["name"] for run in made["runs"]] == ["slow", "fast", "idle"]
    assert all(run["kept"] for run in made["runs"])
    for run, folder in zip(made["runs"], runs, strict=True):
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert run["test"] == report["metrics"]["test"]["accuracy"]
    assert "soup with it" in capsys.readouterr().out


def test_the_order_of_the_runs_does_not_matter(runs, tmp_path):
    cooked(runs, tmp_path / "a")
    cooked(runs[::-1], tmp_path / "b")
    assert tiny.different(saved(tmp_path / "a"), saved(tmp_path / "b")) == []


def test_a_greedy_soup_is_no_worse_than_its_best_run(runs, tmp_path):
    made = cooked(runs, tmp_path / "s", "--method", "greedy")["soup"]
    assert made["rows_unseen"]
    alone = [run["alone"] for run in made["runs"]]
    assert alone == sorted(alone, reverse=True)
    kept = [run for run in made["runs"] if run["kept"]]
    assert kept[-1]["together"] >= max(alone)


def test_a_soup_can_be_evaluated_and_blended(runs, tmp_path, capsys):
    record = cooked(runs[:2], tmp_path / "s")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "s")]) == 0
    assert f"{record['metrics']['test']['accuracy']:.4f}" in capsys.readouterr().out
    place = str(tmp_path / "b")
    assert main(["blend", str(tmp_path / "s"), "--alpha", "1", "--output", place]) == 0
    assert tiny.different(saved(tmp_path / "s"), saved(tmp_path / "b")) == []


def test_one_run_is_no_soup(runs, tmp_path, capsys):
    for given in ([runs[0]], [runs[0], runs[0]]):
        assert "at least two" in refused(capsys, *given, "--output", tmp_path / "s")


def test_a_run_of_another_source_is_refused(runs, tmp_path, capsys):
    torch.manual_seed(5)
    source_folder(tmp_path / "source")
    other = one_run(tmp_path, "other", training={"max_steps": 1})
    message = refused(capsys, *runs, other, "--output", tmp_path / "s")
    assert "another source (fingerprint)" in message
    assert "'" + str(other) + "'" in message
    assert not (tmp_path / "s").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"data": {"per_class": 6}}, "another data block"),
     ({"early_stopping": {"patience": 1}}, "another validation split"),
     ({"task": {"type": "text-classification", "max_length": 4}}, "another task block")],
)  # fmt: skip
def test_a_run_on_other_rows_is_refused(runs, tmp_path, capsys, changes, said):
    (tmp_path / "source").symlink_to(runs[0].parent / "source")
    other = one_run(tmp_path, "other", training={"max_steps": 1}, **changes)
    assert said in refused(capsys, runs[0], other, "--output", tmp_path / "s")


def test_other_labels_are_refused(runs, tmp_path, capsys):
    (tmp_path / "source").symlink_to(runs[0].parent / "source")
    recipe = text_recipe(tmp_path, data={"per_class": 8}, training={"max_steps": 1})
    for name in ("train.csv", "test.csv"):
        rows = [(f"red {i}", "herb") for i in range(9)] + [(f"oak {i}", "tree") for i in range(9)]
        write_csv(tmp_path / name, rows)
    assert main(["run", str(recipe)]) == 0
    message = refused(capsys, runs[0], tmp_path / "out", "--output", tmp_path / "s")
    assert "another labels" in message
