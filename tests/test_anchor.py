"""model.anchor: θ⁰ of one source, training that starts from another."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import source_folder, text_recipe
from transformers import BertForPreTraining

from hf_sft.cli import main


def run(folder, **changes):
    folder.mkdir(exist_ok=True)
    assert main(["run", str(text_recipe(folder, **changes))]) == 0
    report = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    return report, load_file(folder / "out" / "model" / "model.safetensors")


def adapted(folder, source, by=0.05):
    """The source a little further on, as another folder."""
    model = BertForPreTraining.from_pretrained(source)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * by)
    source_folder(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    original = source_folder(folder / "original")
    return original, adapted(folder / "adapted", original)


def model(name, anchor=None):
    return {"model": {"name": str(name), **({"anchor": str(anchor)} if anchor else {})}}


def test_an_anchor_that_is_the_source_itself_changes_nothing(tmp_path, sources):
    original, _ = sources
    plain, theta = run(tmp_path / "a", **model(original))
    anchored, same = run(tmp_path / "b", **model(original, original))
    assert theta.keys() == same.keys()
    assert all(torch.equal(theta[name], same[name]) for name in theta)
    assert plain["source"]["fingerprint"] == anchored["source"]["fingerprint"]
    assert plain["groups"] == anchored["groups"]
    assert anchored["source"]["anchor"] == "original"
    assert plain["source"]["anchor"] is None


def test_a_strong_pull_leads_to_the_anchor_not_to_where_training_starts(tmp_path, sources):
    original, further = sources
    training = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    settings = {"penalty": {"type": "l2-sp", "lambda": 25.0}, "training": training}
    found, theta = run(tmp_path, **model(further, original), **settings)
    first = load_file(original / "model.safetensors")
    start = load_file(further / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    back = float((theta[name] - first[name]).norm())
    assert back < 0.1 * float((start[name] - first[name]).norm())
    group = next(g for g in found["groups"] if name.startswith(g["name"]))
    assert group["drift"] < 0.2 * _apart(first, start, group["name"])
    assert found["source"]["anchor"] == "original"


def _apart(first, second, prefix):
    names = [name for name in first if name.startswith(prefix)]
    return float(sum((first[n] - second[n]).norm() ** 2 for n in names)) ** 0.5


def test_frozen_layers_stay_where_training_starts_and_their_drift_is_from_the_anchor(
    tmp_path, sources
):
    original, further = sources
    found, theta = run(tmp_path, **model(further, original), freeze={"type": "linear-probe"})
    start = load_file(further / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(theta[name], start[name])
    assert found["freeze"]["verified_unchanged"]
    group = next(g for g in found["groups"] if name.startswith(g["name"]))
    first = load_file(original / "model.safetensors")
    assert group["drift"] == pytest.approx(_apart(first, start, group["name"]), rel=1e-4)
    assert "Anchor θ⁰" in (tmp_path / "out" / "report.html").read_text("utf-8")


def refused(capsys, path):
    assert main(["check", str(path)]) == 2
    return capsys.readouterr().err


def test_another_network_is_refused(tmp_path, sources, capsys, monkeypatch):
    import tiny_run

    original, _ = sources
    monkeypatch.setitem(tiny_run.BERT, "intermediate_size", 48)
    wide = source_folder(tmp_path / "wide")
    told = refused(capsys, text_recipe(tmp_path, **model(original, wide)))
    assert "model.anchor: it is another network than model.name" in told
    assert "(48, 16), not (32, 16)" in told


def test_an_anchor_that_is_not_there_is_told(tmp_path, sources, capsys):
    original, _ = sources
    told = refused(capsys, text_recipe(tmp_path, **model(original, "./nowhere")))
    assert "model.anchor" in told


@pytest.mark.parametrize("penalty", ["lwf", "similarity", "fisher-sp"])
def test_penalties_that_study_where_training_starts_are_refused(tmp_path, sources, capsys, penalty):
    path = text_recipe(tmp_path, **model(*sources[::-1]))
    text = path.read_text("utf-8").replace("  lambda: 0.01\n", "").replace("l2-sp", penalty)
    path.write_text(text, "utf-8")
    assert f"model.anchor: {penalty} looks at the model" in refused(capsys, path)
