"""The ``retention`` block: labelled rows of the source's own task, asked before and after."""

import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_image_run import image_recipe, images
from tiny_run import text_recipe
from torchvision.transforms.functional import to_tensor
from transformers import AutoModelForImageClassification

from hf_sft.cli import main
from hf_sft.models import load_model
from hf_sft.recipe import Recipe

PROBE = {"type": "image-folder", "path": "probe"}


def probe_folder(folder, names):
    """The two kinds of noise under names that the source's head may know."""
    images(folder / "noise", 6)
    for kind, name in zip(("dark", "light"), names, strict=True):
        (folder / "probe").mkdir(exist_ok=True)
        shutil.move(folder / "noise" / kind, folder / "probe" / name)


def run_with(folder, **changes):
    path = image_recipe(folder, retention=PROBE, **changes)
    assert main(["run", str(path)]) == 0
    return json.loads((folder / "out" / "report.json").read_text())["retention"]


def asked(folder, tuned=None):
    """Accuracy of the source's own head, picture by picture; on a tuned backbone if given."""
    recipe = Recipe.load(folder / "recipe.yaml")
    model, _ = load_model(recipe.model, recipe.task, ["a", "b"], recipe.locate).original()
    if tuned is not None:
        backbone = {k: v for k, v in tuned.state_dict().items() if ".fc." not in k}
        model.load_state_dict(backbone, strict=False)
    pretrained = model.config.pretrained_cfg
    mean, std = (torch.tensor(pretrained[key]).view(3, 1, 1) for key in ("mean", "std"))
    right = []
    for file in sorted((folder / "probe").rglob("*.png")):
        pixels = (to_tensor(Image.open(file).convert("RGB")) - mean) / std
        with torch.no_grad():
            answer = int(model.eval()(pixel_values=pixels[None]).logits.argmax())
        right.append(answer == int(file.parent.name))
    return sum(right) / len(right)


@pytest.mark.parametrize("names", [("0", "3"), ("5", "1")])
def test_a_frozen_backbone_answers_as_before(names, tmp_path):
    probe_folder(tmp_path, names)
    found = run_with(tmp_path, freeze={"type": "linear-probe"})
    assert found["source_accuracy_before"] == found["source_accuracy_after"]
    assert found["source_accuracy_before"] == pytest.approx(asked(tmp_path))


def test_a_backbone_that_moved_is_asked_as_it_is_now(tmp_path):
    probe_folder(tmp_path, ("5", "1"))
    found = run_with(tmp_path, training={"learning_rate": 0.3})
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model")
    assert found["source_accuracy_before"] == pytest.approx(asked(tmp_path))
    assert found["source_accuracy_after"] == pytest.approx(asked(tmp_path, tuned))


def test_labels_that_the_source_does_not_know_are_refused(tmp_path, capsys):
    probe_folder(tmp_path, ("dark", "light"))
    assert main(["run", str(image_recipe(tmp_path, retention=PROBE))]) == 2
    error = capsys.readouterr().err
    assert "dark" in error
    assert "by their numbers" in error
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_head_cannot_be_asked(tmp_path, capsys):
    path = text_recipe(tmp_path, retention={"type": "table", "train": "train.csv"})
    assert main(["check", str(path)]) == 2
    assert "comes without a head" in capsys.readouterr().err
