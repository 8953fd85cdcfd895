"""Masks of 0 and 255, where 255 is a class and not, as mostly, none: never lost silently."""

import logging

import numpy as np
import pytest
import tiny_masks
import yaml
from PIL import Image

from hf_sft.errors import DataError
from hf_sft.loaders import MaskFolder
from hf_sft.new.recipe import propose
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.tasks import ImageSegmentation

PALETTE = {"background": [0, 0, 0], "cell": [255, 255, 255]}
ANONYMOUS = {"background": [0, 0, 0], "object": [255, 255, 255]}


def written(folder, numbers, names="background\ncell\n", form="L"):
    """``d`` with four images and masks whose rows of pixels hold ``numbers`` in turn."""
    for kind in ("images", "masks"):
        (folder / "d" / kind).mkdir(parents=True)
    for number in range(4):
        level = (60 * number, 9, 9)
        Image.new("RGB", (40, 40), level).save(folder / "d" / "images" / f"{number}.png")
        rows = np.resize(np.array(numbers, dtype=np.uint8), 40)
        mask = Image.fromarray(np.repeat(rows[:, None], 40, axis=1))
        mask.convert(form).save(folder / "d" / "masks" / f"{number}.png")
    if names:
        (folder / "d" / "classes.txt").write_text(names)
    return folder


def check(folder, task=None, **keys):
    return (task or ImageSegmentation()).check(MaskFolder(path="d", **keys).load(locator(folder)))


@pytest.mark.parametrize("names", ["background\ncell\n", None], ids=["named", "nameless"])
def test_masks_of_0_and_255_are_refused_with_the_remedy(tmp_path, names):
    written(tmp_path, [0, 0, 0, 255], names)
    with pytest.raises(DataError) as error:
        check(tmp_path)
    palette = PALETTE if names else ANONYMOUS
    said = ", ".join(f"{name}: {colour}" for name, colour in palette.items())
    assert "data.train: the masks hold only 0, 255, and 255 (25% of the pixels)" in str(error.value)
    assert f"data.palette: {{{said}}}" in str(error.value)
    row = check(tmp_path, palette=palette)["train"][0]  # the remedy
    found = ImageSegmentation().kind.target(row, 40, 40).numpy()
    assert (found == (np.arange(40) % 4 == 3)[:, None]).all()


def test_masks_of_one_class_are_refused(tmp_path):
    written(tmp_path, [0])
    with pytest.raises(DataError, match="the masks hold only 0, one class; two are needed"):
        check(tmp_path)


def test_a_class_that_may_be_hidden_in_255_is_told(tmp_path, caplog):
    written(tmp_path, [0, 1, 1, 255], "background\ncell\nnucleus\n")
    with caplog.at_level(logging.WARNING):
        check(tmp_path)
    assert "no pixel of nucleus. 25% of all pixels are 255, task.ignore_index" in caplog.text


def test_255_around_two_classes_stays_no_class(tmp_path, caplog):
    written(tmp_path, [0, 1, 1, 255])
    with caplog.at_level(logging.WARNING):
        row = check(tmp_path)["train"][0]
    assert caplog.text == ""
    found = ImageSegmentation().kind.target(row, 40, 40).numpy()
    assert found[:4, 0].tolist() == [0, 1, 1, -1]


def proposed(folder, *overrides):
    return propose("image-segmentation", "d", folder, None, overrides)


@pytest.mark.parametrize("form", ["L", "P"])
@pytest.mark.parametrize("names", ["background\ncell\n", None], ids=["named", "nameless"])
def test_a_new_recipe_reads_both(tmp_path, monkeypatch, names, form):
    monkeypatch.chdir(written(tmp_path, [0, 0, 255], names, form))
    found = proposed(tmp_path)
    assert found.raw["data"]["palette"] == (PALETTE if names else ANONYMOUS)
    assert any("The masks hold 0 and 255 alone" in line for line in found.decisions)
    assert found.refusal is None
    (tmp_path / "recipe.yaml").write_text(found.text("recipe.yaml"), "utf-8")
    assert "255 is read as the class" in (tmp_path / "recipe.yaml").read_text("utf-8")


def test_a_new_recipe_for_masks_of_one_class_speaks_of_the_masks(tmp_path, monkeypatch):
    monkeypatch.chdir(written(tmp_path, [0], None))
    assert "the masks hold only 0, one class" in proposed(tmp_path).refusal


def test_other_masks_are_proposed_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(written(tmp_path, [0, 1, 255], None))
    found = proposed(tmp_path)
    assert found.raw["data"]["classes"] == ["class_0", "class_1"]
    assert found.refusal is None
    assert not any("255" in line for line in found.decisions)


def test_outlined_objects_are_proposed_with_a_source_that_finds_masks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_masks.coco_file(tmp_path)
    for override, name in (
        ([], "facebook/mask2former-swin-tiny-coco-instance"),
        (["task.problem=semantic"], "nvidia/segformer-b0-finetuned-ade-512-512"),
        (["model.name=./mine"], "./mine"),
    ):
        found = propose("image-segmentation", "train.json", tmp_path, None, override)
        assert found.raw["model"] == {"name": name}
        assert list(found.raw)[:3] == ["task", "data", "model"]
    text = propose("image-segmentation", "train.json", tmp_path, None, []).text("recipe.yaml")
    assert yaml.safe_load(text)["task"]["problem"] == "instance"


def test_an_instance_recipe_checks_with_such_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_masks.coco_file(tmp_path)
    tiny_masks.mask2former_source(tmp_path / "source")
    found = propose("image-segmentation", "train.json", tmp_path, "source", [])
    assert found.raw["model"] == {"name": "./source"}
    (tmp_path / "recipe.yaml").write_text(found.text("recipe.yaml"), "utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml").task.problem == "instance"
