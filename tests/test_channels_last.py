"""model.channels_last: the same weights laid out otherwise, from loading to what is predicted."""

import torch
from safetensors.torch import load_file
from tiny_image_run import image_recipe, image_run
from tiny_run import text_recipe
from torch import nn

from hf_sft.cli import main
from hf_sft.model_source import image_convolutions, lay_out_channels_last
from hf_sft.recipe import Recipe
from hf_sft.running import prepare
from hf_sft.saved import load
from hf_sft.training_arguments import training_arguments

PULL = {"type": "l2-sp", "lambda": 0.05}


def laid_out(tensors):
    return {
        name
        for name, t in tensors.items()
        if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        and not t.is_contiguous()
    }  # fmt: skip


def prepared(folder, **model):
    recipe = Recipe.load(image_recipe(folder, model=model, penalty=PULL))
    return prepare(recipe, training_arguments(recipe))


def test_the_same_starting_point_in_another_layout(tmp_path):
    plain, found = prepared(tmp_path), prepared(tmp_path, channels_last=True)
    convolutions = laid_out(dict(found.loaded.model.named_parameters()))
    assert convolutions
    assert not laid_out(dict(plain.loaded.model.named_parameters()))
    assert laid_out(found.trainer.starting_point.copies) == convolutions  # as the pull wants it
    assert laid_out(dict(found.loaded.original()[0].named_parameters())) == convolutions
    start = found.trainer.starting_point
    assert start.fingerprint == plain.trainer.starting_point.fingerprint
    assert found.trainer.penalty_value() == plain.trainer.penalty_value() == 0


def test_trained_resumed_saved_and_used_as_without_it(tmp_path):
    plain = weights_of(image_run(tmp_path, penalty=PULL))
    saving = {"output_dir": str(tmp_path / "laid"), "save_strategy": "steps", "save_steps": 3}
    asked = {"penalty": PULL, "model": {"channels_last": True}, "training": saving}
    assert main(["run", str(image_recipe(tmp_path, **asked))]) == 0
    laid = weights_of(tmp_path / "laid")
    assert plain.keys() == laid.keys()
    assert not laid_out(laid)
    start = torch.load(tmp_path / "source.pth")
    same = [name for name in start if plain[name].shape == start[name].shape]
    moved = sum(float((plain[name] - start[name]).float().norm()) for name in same)
    apart = sum(float((plain[name] - laid[name]).float().norm()) for name in same)
    assert apart < 0.01 * moved  # Adam takes rounding of a gradient near 0 for a direction

    assert laid_out(dict(load(tmp_path / "laid")[1].named_parameters()))
    assert main(["evaluate", str(tmp_path / "laid")]) == 0

    recipe = Recipe.load(tmp_path / "recipe.yaml")
    trainer = prepare(recipe, training_arguments(recipe)).trainer
    checkpoint = tmp_path / "laid" / "checkpoints" / "checkpoint-3"
    trainer.train(resume_from_checkpoint=str(checkpoint))
    found = trainer.model.state_dict()
    assert laid_out(found)
    for name, tensor in found.items():
        assert torch.equal(tensor, laid[name.removeprefix("timm_model.")]), name


def weights_of(run):
    return load_file(run / "model" / "model.safetensors")


def test_a_cached_training_takes_it(tmp_path):
    settings = {"model": {"channels_last": True}, "freeze": {"type": "train-last", "count": 1}}
    run = image_run(tmp_path, cache={"folder": str(tmp_path / "cache")}, **settings)
    assert any((tmp_path / "cache").rglob("*"))
    assert (run / "report.json").is_file()


def test_only_convolutions_of_images_are_laid_out():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.Conv3d(4, 6, 3))
    model.table = nn.Parameter(torch.ones(2, 3, 4, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = lay_out_channels_last(model).state_dict()
    assert laid_out(found) == {"0.weight", "1.weight"}
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert not image_convolutions(model[2])


def test_refused_where_there_is_nothing_to_lay_out(tmp_path, capsys):
    recipe = text_recipe(tmp_path)
    assert main(["check", str(recipe), "model.channels_last=true"]) == 2
    told = capsys.readouterr().err
    assert "model.channels_last" in told
    assert "Leave the key out" in told
