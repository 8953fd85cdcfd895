"""adapt: unlabelled inputs change the statistics, or γ and β, and nothing else."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_image_run import image_run, images
from tiny_run import text_recipe
from torch import nn
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

from hf_sft.cli import main
from hf_sft.errors import UserError
from hf_sft.saved import load
from hf_sft.weights.adapt import _adapted
from hf_sft.weights.tent import affine_parameters


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return image_run(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    assert main(["run", str(text_recipe(folder))]) == 0
    (folder / "in.txt").write_text("\n".join(f"red oak {i}" for i in range(40)), "utf-8")
    return folder / "out"


@pytest.fixture(scope="module")
def brighter(tmp_path_factory):
    """The same kinds of images in another light; adapt does not see that they lie by class."""
    folder = tmp_path_factory.mktemp("brighter") / "in"
    images(folder, 12, shade=60)
    return folder


def saved(folder):
    return load_file(folder / "model" / "model.safetensors")


def adapted(run, given, output, *options):
    words = [str(run), str(given), "--output", str(output), *map(str, options)]
    assert main(["adapt", *words]) == 0
    return json.loads((output / "adapt.json").read_text("utf-8"))


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["adapt", *map(str, words)]) == 2
    return capsys.readouterr().err


def affine(run):
    return {name.removeprefix("timm_model.") for name in affine_parameters(load(run)[1])}


def test_statistics_move_and_nothing_else(vision, brighter, tmp_path, capsys):
    record = adapted(vision, brighter, tmp_path / "a", "--method", "statistics")
    changed = tiny.different(saved(vision), saved(tmp_path / "a"))
    assert {name.rpartition(".")[2] for name in changed} == {
        "running_mean", "running_var", "num_batches_tracked"
    }  # fmt: skip
    assert record["metrics"] == {}  # the run's do not hold any more
    assert record["adapt"]["row_count"] == 24
    assert "Mean entropy" in capsys.readouterr().out


def test_tent_moves_the_affine_parameters_too_and_entropy_falls(vision, brighter, tmp_path):
    record = adapted(vision, brighter, tmp_path / "a", "--method", "tent", "--batch-size", 8)
    changed = set(tiny.different(saved(vision), saved(tmp_path / "a")))
    ends = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in changed if not name.endswith(ends)} == affine(vision)
    still = adapted(vision, brighter, tmp_path / "b", "--method", "statistics", "--batch-size", 8)
    assert (
        record["adapt"]["mean_entropy"]["after"] < still["adapt"]["mean_entropy"]["after"]
    )  # than the statistics alone


def test_tent_adapts_a_model_with_layer_norms(text, tmp_path):
    record = adapted(text, text.parent / "in.txt", tmp_path / "a", "--method", "tent")
    changed = set(tiny.different(saved(text), saved(tmp_path / "a")))
    assert changed == affine(text)
    entropy = record["adapt"]["mean_entropy"]
    assert entropy["after"] < entropy["before"]


def test_the_same_inputs_give_the_same_model(vision, brighter, tmp_path):
    for name in ("a", "b"):
        adapted(vision, brighter, tmp_path / name, "--method", "tent")
        torch.rand(3)
    assert tiny.different(saved(tmp_path / "a"), saved(tmp_path / "b")) == []


def test_what_it_leaves_can_be_asked_and_evaluated(vision, brighter, tmp_path):
    adapted(vision, brighter, tmp_path / "a", "--method", "statistics")
    assert main(["predict", str(tmp_path / "a"), str(brighter)]) == 0
    assert main(["evaluate", str(tmp_path / "a")]) == 0
    card = (tmp_path / "a" / "README.md").read_text("utf-8")
    assert "unlabelled" in card
    assert "## Results" not in card
    assert str(tmp_path) not in card


def test_batch_norms_that_are_fixed_are_told(tmp_path):
    model = nn.Sequential(DetrFrozenBatchNorm2d(3), nn.Conv2d(3, 3, 1), DetrFrozenBatchNorm2d(3))
    with pytest.raises(
        UserError, match=r"the 2 batch norms of Sequential are fixed\. Use --method"
    ):
        _adapted(tmp_path, model, None, "statistics")


def test_wrong_inputs_write_nothing(text, vision, tmp_path, capsys):
    place = ["--output", tmp_path / "deep" / "a", "--method"]
    lines = text.parent / "in.txt"
    (tmp_path / "one.txt").write_text("red")
    (tmp_path / "empty").mkdir()
    told = {
        "does not exist": (text, tmp_path / "nothing.txt", *place, "tent"),
        "no batch norm": (text, lines, *place, "statistics"),
        "no images there": (vision, tmp_path / "empty", *place, "tent"),
        "is no finished run": (tmp_path / "empty", lines, *place, "tent"),
        "two are needed": (vision, vision.parent / "images" / "test" / "dark" / "0.png", *place,
                           "statistics"),
    }  # fmt: skip
    for said, words in told.items():
        message = refused(capsys, *words)
        assert said in message
        assert "Traceback" not in message
    assert not (tmp_path / "deep").exists()
