"""``model.pretrained: false``: the source's network, nothing of its weights, drawn by the seed."""

import pytest
import timm
import torch
from test_cli import refused
from tiny_run import picture, text_recipe, write_csv

from hf_sft.recipe import Recipe
from hf_sft.reporting import card, report_page
from hf_sft.running import prepare, run
from hf_sft.training_arguments import training_arguments


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder, *overrides):
    recipe = Recipe.load(text_recipe(folder, penalty=None), overrides)
    model = prepare(recipe, training_arguments(recipe)).loaded.model
    return {name: tensor.clone() for name, tensor in model.named_parameters()}


def test_every_weight_is_drawn_by_the_seed_in_the_sources_form(folder):
    source = weights(folder)
    drawn = [weights(folder, "model.pretrained=false", f"training.seed={s}") for s in (1, 1, 2)]
    assert {n: (t.shape, t.dtype) for n, t in drawn[0].items()} == {
        n: (t.shape, t.dtype) for n, t in source.items()
    }
    matrices = [n for n, t in source.items() if t.ndim == 2]  # biases and norms begin alike
    assert matrices
    for name in matrices:
        assert torch.equal(drawn[0][name], drawn[1][name])
        for other in (drawn[2], source):
            assert not torch.isclose(drawn[0][name], other[name]).any(-1).all()


def test_a_bare_weight_file_gives_its_network(folder):
    torch.manual_seed(5)
    state = timm.create_model("test_convnext").state_dict()
    torch.save(state, folder / "net.pth")
    rows = [(str(picture(folder / f"{i}.png", (40 * i, 9, 9))), "ab"[i % 2]) for i in range(6)]
    write_csv(folder / "rows.csv", rows, ("image", "label"))
    (folder / "recipe.yaml").write_text(
        "task: {type: image-classification, image_size: 32}\n"
        "data: {type: table, train: rows.csv}\n"
        "model: {name: ./net.pth, architecture: test_convnext, pretrained: false}\n"
        "training: {use_cpu: true}\n"
    )
    recipe = Recipe.load(folder / "recipe.yaml")
    loaded = prepare(recipe, training_arguments(recipe)).loaded
    found = dict(loaded.model.timm_model.named_parameters())
    convolutions = [n for n, t in state.items() if t.ndim == 4]
    assert convolutions
    assert not any(torch.equal(found[n], state[n]) for n in convolutions)
    assert loaded.source.pretrained is False


def test_the_run_claims_nothing_of_the_source(folder):
    report = run(Recipe.load(text_recipe(folder, penalty=None), ["model.pretrained=false"]))
    kept = report.data["retention"]
    assert kept["examples"] == 0
    assert not {"kl", "spearman", "top1_agreement"} & set(kept)
    assert "drawn anew" in report.table()
    assert "weights drawn anew" in card.render(report)
    assert "fine-tuned" not in card.render(report).partition("## Method")[0]
    assert "from scratch" in report_page.render(report)
    assert all(group["drift"] > 0 for group in report.data["groups"] if group["drift"] is not None)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("penalty={type: l2-sp}", "penalty"),
        ("model.anchor=./source", "model.anchor"),
        ("retention={type: table, train: train.csv}", "retention"),
    ],
)
def test_there_is_nothing_to_hold_on_to(folder, capsys, change, key):
    path = text_recipe(folder, penalty=None)
    message = refused(capsys, "check", path, "model.pretrained=false", change)
    assert f"override: {key}: with model.pretrained: false" in message
