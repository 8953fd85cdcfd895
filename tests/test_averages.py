"""A recipe's averaging: what a run leaves is the average that a callback beside it takes."""

import json
import shutil

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from hf_sft import Ema, Recipe, Swa, run
from hf_sft.errors import RecipeError
from hf_sft.running import prepare
from hf_sft.training_arguments import training_arguments

EMA = {"averaging": {"type": "ema", "decay": 0.9}}
SWA = {"averaging": {"type": "swa", "share_of_training": 0.5}}
LPFT = {"freeze": {"type": "lp-ft", "probe": 0.3}}


def loaded(folder, **blocks):
    return Recipe.load(tiny_run.text_recipe(folder, **blocks))


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def by_hand(folder, callback, **blocks):
    """The average of the same training, taken by a callback that was added by hand."""
    recipe = loaded(folder, **blocks)
    prepared = prepare(recipe, training_arguments(recipe))
    prepared.trainer.add_callback(callback)
    prepared.trainer.train()
    last = {n: p.detach().clone() for n, p in prepared.trainer.model.named_parameters()}
    return callback.average, last


@pytest.mark.parametrize("policy", [{}, LPFT], ids=["all", "lp-ft"])
@pytest.mark.parametrize(
    ("block", "callback"), [(EMA, lambda: Ema(0.9)), (SWA, lambda: Swa(0.5))], ids=["ema", "swa"]
)
def test_the_run_leaves_the_average(block, callback, policy, tmp_path):
    report = run(loaded(tmp_path, **block, **policy))
    found = weights(tmp_path / "out")
    average, last = by_hand(tmp_path, callback(), **policy)
    assert any(".encoder." in name for name in average)
    for name in last:
        assert torch.equal(found[name], average[name]), name
    assert any((found[n] != last[n]).any() for n in last if ".encoder." in n)
    assert report.data["averaging"]["type"] == block["averaging"]["type"]
    told = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "average over its steps" in told


def test_what_is_measured_is_the_average(tmp_path):
    from hf_sft.saved import evaluate  # noqa: PLC0415 (the other test needs no command)

    report = run(loaded(tmp_path, **EMA))
    shown = evaluate(tmp_path / "out")
    assert f"{report.data['metrics']['test']['loss']:.4f}" in shown


@pytest.mark.parametrize("kept", [5, 10], ids=["half way", "after the last step"])
def test_a_resumed_run_leaves_the_same(kept, tmp_path):
    steps = {"training": {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}}
    run(loaded(tmp_path, **EMA, **steps))
    whole = weights(tmp_path / "out")
    out = tmp_path / "out"
    for name in ("report.json", "README.md", "report.html"):
        (out / name).unlink()
    shutil.rmtree(out / "model")
    for folder in out.glob("checkpoint-*"):
        if int(folder.name.rpartition("-")[2]) > kept:
            shutil.rmtree(folder)
    run(loaded(tmp_path, **EMA, **steps))
    again = weights(out)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert json.loads((out / "report.json").read_text("utf-8"))["averaging"]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"early_stopping": {"patience": 2}}, "early_stopping out"),
        ({"averaging": {"type": "ema", "decay": 1.0}}, "averaging.decay"),
        ({"averaging": {"type": "polyak"}}, "ema"),
    ],
    ids=["best", "decay", "type"],
)
def test_what_cannot_be_is_told(blocks, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        loaded(tmp_path, **{**EMA, **blocks})
