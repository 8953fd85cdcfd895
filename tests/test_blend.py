"""blend: the path, the choice, the folder it leaves, and what it refuses."""

import json
import re
import shutil

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from tiny_image_run import image_run
from tiny_run import text_recipe

from hf_sft.cli import main
from hf_sft.errors import UserError
from hf_sft.weights import blend_page
from hf_sft.weights.blend import Point, Way, choose
from hf_sft.weights.norm_statistics import statistical_norms
from hf_sft.weights.origin import Origin


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    changes = {
        "data": {"per_class": 8},
        "training": {"learning_rate": 0.003, "num_train_epochs": 4},
    }
    assert main(["run", str(text_recipe(folder, **changes))]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return image_run(tmp_path_factory.mktemp("vision"))


def blended(run, output, *options):
    assert main(["blend", str(run), "--output", str(output), *map(str, options)]) == 0
    return json.loads((output / "blend.json").read_text("utf-8"))


def saved(folder):
    return load_file(folder / "model" / "model.safetensors")


def weights(origin, method, alpha):
    return Way(origin, method, True).weights(alpha)


def refused(capsys, *words):
    capsys.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as end:  # argparse
        code = end.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("method", ["wise-ft", "lines"])
def test_the_path_goes_from_the_source_to_the_run(run, tmp_path, method, capsys):
    record = blended(run, tmp_path / "b", "--method", method)
    made = record["blend"]
    assert [point["alpha"] for point in made["path"]] == [i / 10 for i in range(11)]
    assert made["rows_unseen"]
    assert made["row_count"] == 8
    if method == "wise-ft":
        assert made["path"][0]["retention"] == pytest.approx(1.0, abs=1e-6)
    kept = json.loads((run / "report.json").read_text("utf-8"))
    assert record["metrics"]["test, the run itself"] == kept["metrics"]["test"]
    best = max(point["target"] for point in made["path"])
    wanted = min(point["alpha"] for point in made["path"] if point["target"] == best)
    assert made["alpha"] == wanted
    shown = capsys.readouterr().out
    assert f"{wanted:g} *" in shown
    assert "the best accuracy" in shown


def test_the_whole_way_is_the_run_bit_for_bit(run, tmp_path):
    blended(run, tmp_path / "b", "--alpha", 1)
    assert tiny.different(saved(run), saved(tmp_path / "b")) == []


def test_no_way_is_the_source_under_the_runs_head(run, tmp_path):
    blended(run, tmp_path / "b", "--alpha", 0)
    start, end, found = (
        load_file(run.parent / "source" / "model.safetensors"), saved(run), saved(tmp_path / "b"),
    )  # fmt: skip
    for name, tensor in found.items():
        wanted = end if name.startswith("classifier") else start
        assert torch.equal(tensor, wanted[name]), name


def test_a_share_of_ones_own_is_measured_and_saved(run, tmp_path):
    record = blended(run, tmp_path / "b", "--alpha", 0.25)
    assert record["blend"]["alpha"] == 0.25
    assert 0.25 in [point["alpha"] for point in record["blend"]["path"]]
    assert record["blend"]["chosen"] == "as asked"
    origin = Origin.of(run)
    assert tiny.different(weights(origin, "wise-ft", 0.25), saved(tmp_path / "b")) == []


def test_what_it_leaves_can_be_evaluated_asked_and_blended_again(run, tmp_path, capsys):
    record = blended(run, tmp_path / "b", "--alpha", 0.5)
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "b")]) == 0
    assert f"{record['metrics']['test']['accuracy']:.4f}" in capsys.readouterr().out
    (tmp_path / "in.txt").write_text("red rose")
    assert main(["predict", str(tmp_path / "b"), str(tmp_path / "in.txt")]) == 0
    again = blended(tmp_path / "b", tmp_path / "c", "--alpha", 1)
    assert tiny.different(saved(tmp_path / "b"), saved(tmp_path / "c")) == []
    assert again["source"] == record["source"]


def test_a_run_of_the_same_recipe_leaves_the_folder_alone(run, tmp_path, capsys):
    blended(run, tmp_path / "b", "--alpha", 0.5)
    before = saved(tmp_path / "b")
    recipe = run.parent / "recipe.yaml"
    message = refused(capsys, "run", recipe, f"training.output_dir={tmp_path / 'b'}")
    assert "different recipe" in message
    assert tiny.different(before, saved(tmp_path / "b")) == []


def test_the_page_and_the_card_name_no_path_and_need_no_file(run, tmp_path):
    blended(run, tmp_path / "b", "--retain", 0.5)
    page = (tmp_path / "b" / "blend.html").read_text("utf-8")
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    for text in (page, card):
        assert str(tmp_path) not in text
        assert str(run.parent) not in text
    assert not re.search(r"<script|\b(src|href)=\"(?!#)|@import|url\((?!#)", page)
    assert "retention of at least 0.5" in page
    assert "chosen" in page
    assert "prefers-color-scheme: dark" in page
    assert not [colour for colour in blend_page.ON_PAGE if colour in page]
    assert "| accuracy |" in card


def test_hostile_names_stay_text(run, tmp_path):
    record = blended(run, tmp_path / "b", "--alpha", 0.5)
    record["blend"]["run"] = record["source"]["name"] = "<script>alert(1)</script>"
    assert "<script" not in blend_page.render(record)


def point(alpha, target, retention):
    return Point(alpha, target, retention, 0.0)


def test_the_choice():
    path = [point(0.0, 0.1, 1.0), point(0.5, 0.9, 0.8), point(0.8, 0.9, 0.6), point(1.0, 0.7, 0.2)]
    assert choose(path, None) == 0.5  # of equals, the nearest to the source
    assert choose(path, 0.7) == 0.5
    assert choose(path, 0.9) == 0.0
    assert choose([point(0.0, float("nan"), 1.0), *path[1:]], None) == 0.5
    with pytest.raises(UserError, match=r"the most is 0\.8000"):
        choose(path[1:], 0.9)
    with pytest.raises(UserError, match="could not be measured"):
        choose([point(0.0, 1.0, None)], 0.1)


# ---- batch norm ----


def test_statistics_are_measured_again_between_the_ends_only(vision):
    origin = Origin.of(vision)
    norms = set(statistical_norms(origin.model))
    assert origin.put(weights(origin, "wise-ft", 0.0)) == []
    assert origin.put(weights(origin, "wise-ft", 1.0)) == []
    assert tiny.different(origin.tuned, tiny.weights(origin.model)) == []
    state = weights(origin, "wise-ft", 0.5)
    assert set(origin.put(state)) == norms
    changed = set(tiny.different(state, tiny.weights(origin.model)))
    ends = ("running_mean", "running_var", "num_batches_tracked")
    assert changed <= {f"{name}.{end}" for name in norms for end in ends}
    assert {name.rpartition(".")[0] for name in changed} == norms


def test_retention_is_measured_against_the_source_every_time(vision):
    """A weight file's source is one object, which measuring changes."""
    origin = Origin.of(vision)
    for _ in range(2):
        origin.put(origin.tuned)
        away = origin.retention()
        origin.put(weights(origin, "wise-ft", 0.0))
        assert origin.retention() == 1.0
        origin.put(origin.tuned)
        assert origin.retention() == away


def test_frozen_statistics_stay_the_sources(tmp_path):
    run = image_run(tmp_path, freeze={"type": "train-last", "count": 1})
    origin = Origin.of(run)
    measured = origin.put(weights(origin, "wise-ft", 0.5))
    still = set(statistical_norms(origin.model)) - set(measured)
    assert measured
    assert still
    now = tiny.weights(origin.model)
    for name in still:
        for end in ("running_mean", "running_var"):
            assert torch.equal(now[f"{name}.{end}"], origin.source[f"{name}.{end}"])


def test_a_vision_run_is_blended(vision, tmp_path):
    record = blended(vision, tmp_path / "b", "--alpha", 0.5)
    assert record["blend"]["statistics_measured_again"] > 5
    assert record["blend"]["path"][0]["retention"] == 1.0
    assert "measured again on training rows" in (tmp_path / "b" / "blend.html").read_text("utf-8")


def test_statistics_may_be_interpolated_like_the_weights(vision, tmp_path):
    options = ("--alpha", 0.5, "--statistics", "interpolated")
    record = blended(vision, tmp_path / "b", *options)
    assert record["blend"]["statistics_measured_again"] == 0
    wanted, found = weights(Origin.of(vision), "wise-ft", 0.5), saved(tmp_path / "b")
    assert all(torch.equal(t, wanted[f"timm_model.{name}"]) for name, t in found.items())


# ---- refusals ----


@pytest.fixture
def moved(run, tmp_path):
    """The run beside copies of its data and its source."""
    for name in ("train.csv", "test.csv"):
        shutil.copy(run.parent / name, tmp_path / name)
    shutil.copytree(run.parent / "source", tmp_path / "source")
    folder = shutil.copytree(run, tmp_path / "moved")
    (folder / "checkpoints" / "recipe_folder.txt").write_text(str(tmp_path))
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--alpha", "1.5"], "a number from 0 to 1"), (["--retain", "x"], "a number from 0 to 1"),
     (["--alpha", "0.5", "--retain", "0.5"], "not allowed with"),
     (["--method", "slerp"], "invalid choice"), (["--statistics", "no"], "invalid choice")],
)  # fmt: skip
def test_wrong_options_exit_with_2(run, tmp_path, capsys, options, said):
    assert said in refused(capsys, "blend", run, "--output", tmp_path / "b", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [("no run", "is no finished run"), ("no report", "report.json is missing"),
     ("torn report", "is torn"), ("other source", "has the fingerprint"),
     ("no source", "model.name"), ("fewer rows", "there are"), ("other classes", "classes")],
)  # fmt: skip
def test_a_wrong_input_is_one_message_and_nothing_written(moved, tmp_path, capsys, how, said):
    given, output = moved, tmp_path / "deep" / "b"
    report, csv = moved / "report.json", tmp_path / "train.csv"
    if how == "no run":
        given = tmp_path / "source"
    elif how == "no report":
        report.unlink()
    elif how == "torn report":
        report.write_text(report.read_text("utf-8")[:-40])
    elif how == "other source":
        torch.manual_seed(9)
        from tiny_run import source_folder

        shutil.rmtree(tmp_path / "source")
        source_folder(tmp_path / "source")
    elif how == "no source":
        shutil.rmtree(tmp_path / "source")
    elif how == "fewer rows":
        csv.write_text("\n".join(csv.read_text("utf-8").splitlines()[:-8]))
    else:
        csv.write_text(csv.read_text("utf-8").replace("flower", "shrub"))
        (tmp_path / "test.csv").write_text(csv.read_text("utf-8"))
    message = refused(capsys, "blend", given, "--output", output)
    assert said in message
    assert "Traceback" not in message
    assert not output.parent.exists()


def test_an_output_that_holds_something_is_left_alone(run, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    assert "exists" in refused(capsys, "blend", run, "--output", tmp_path / "b")
    (tmp_path / "file").write_text("x")
    assert "exists" in refused(capsys, "blend", run, "--output", tmp_path / "file")
    assert "cannot be made" in refused(capsys, "blend", run, "--output", tmp_path / "file" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "file"]
    assert (tmp_path / "b" / "mine.txt").read_text() == "x"


def test_an_empty_folder_is_taken(run, tmp_path):
    (tmp_path / "b").mkdir()
    blended(run, tmp_path / "b", "--alpha", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_run_on_every_row_chooses_nothing_but_takes_a_share(tmp_path, capsys):
    assert main(["run", str(text_recipe(tmp_path))]) == 0
    run = tmp_path / "out"
    assert "choose" in refused(capsys, "blend", run, "--output", tmp_path / "b")
    record = blended(run, tmp_path / "b", "--alpha", 0.5)
    assert not record["blend"]["rows_unseen"]
    assert 'role="alert"' in (tmp_path / "b" / "blend.html").read_text("utf-8")
    recipe = yaml.safe_load((tmp_path / "b" / "recipe.yaml").read_text("utf-8"))
    assert recipe["training"]["run_name"] == "blend of out"
