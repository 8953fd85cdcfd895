"""What would stop a push is told before training; what a finished run leaves is not taken away."""

import pytest
from tiny_run import text_recipe

from hf_sft import hub, publishing
from hf_sft.cli import main
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.running import prepare, run
from hf_sft.training_arguments import training_arguments

PUSHED = ("training.push_to_hub=true", "training.hub_model_id=user/tuned")


@pytest.fixture
def ready(monkeypatch):
    """As if signed in, with the Hub switched on."""
    monkeypatch.setattr(publishing, "get_token", lambda: "hf_any")
    monkeypatch.setattr(publishing.constants, "HF_HUB_OFFLINE", False)


def refusal(folder, *overrides):
    recipe = Recipe.load(text_recipe(folder), [*PUSHED, *overrides])
    with pytest.raises(RecipeError) as caught:
        run(recipe)
    assert not (folder / "out").exists()
    return str(caught.value)


def test_without_token_or_network_nothing_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    asked = ("training.hub_private_repo=false", "training.hub_revision=second")
    said = refusal(tmp_path, *asked)
    assert "recipe.yaml: training.push_to_hub: no token of the Hub is known. Run `hf auth" in said
    assert "HF_HUB_OFFLINE switches the Hub off" in said
    assert f"run later: hf-sft push {tmp_path}/out user/tuned --public --revision second" in said


def test_check_refuses_a_hopeless_push_as_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    recipe = text_recipe(tmp_path)
    asked = ("training.push_to_hub=true", "training.hub_model_id=my model/x")
    assert main(["check", str(recipe), *asked]) == 2
    output = capsys.readouterr()
    assert "The recipe is good" not in output.out
    assert "training.hub_model_id: 'my model/x' is no name of a repository" in output.err
    assert "training.push_to_hub: no token of the Hub is known." in output.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("ready")
def test_a_name_that_is_none_and_keys_of_another_way_are_told_together(tmp_path):
    said = refusal(tmp_path, "training.hub_model_id=my model/x", "training.hub_strategy=every_save")
    assert "training.hub_model_id: 'my model/x' is no name of a repository" in said
    assert "training.hub_strategy: a run is pushed once" in said


@pytest.mark.usefixtures("ready")
def test_a_card_that_the_hub_would_refuse_is_told_before_training(tmp_path, monkeypatch):
    known = publishing.before

    def before(*given):
        data = known(*given)
        return data | {"source": {**data["source"], "hub_id": "no id of a source"}}

    monkeypatch.setattr(publishing, "before", before)
    said = refusal(tmp_path)
    assert "the Hub would refuse the model card: base_model: 'no id of a source'" in said


@pytest.mark.usefixtures("ready")
def test_what_is_right_passes_and_is_not_looked_at_without_a_push(tmp_path, monkeypatch):
    path = text_recipe(tmp_path)
    recipe = Recipe.load(path, PUSHED)
    prepared = prepare(recipe, training_arguments(recipe))
    publishing.refuse_hopeless(recipe, prepared)
    monkeypatch.setattr(publishing, "get_token", lambda: None)
    publishing.refuse_hopeless(Recipe.load(path), None)


@pytest.mark.usefixtures("ready")
def test_the_result_is_told_before_the_push_and_stays_when_it_fails(tmp_path, monkeypatch):
    heard = []

    def refuse(folder, repo, private, revision):
        heard.append((folder, repo, private, revision))
        raise hub.PushError("no way")

    monkeypatch.setattr(hub, "push", refuse)
    recipe = Recipe.load(text_recipe(tmp_path), [*PUSHED, "training.num_train_epochs=1"])
    with pytest.raises(hub.PushError, match="no way"):
        run(recipe, then=lambda report: heard.append(report.data["task"]))
    assert heard == ["text-classification", (tmp_path / "out", "user/tuned", None, None)]
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model", "report.json", "README.md", "drift.png", "report.html"} <= left


def test_the_command_for_later_says_all_that_was_asked(tmp_path):
    assert hub.again(tmp_path, "user/x", None, None) == f"hf-sft push {tmp_path} user/x"
    said = hub.again(tmp_path / "a b", "user/x", False, "second")
    assert said == f"hf-sft push '{tmp_path}/a b' user/x --public --revision second"
