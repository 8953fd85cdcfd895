"""Balanced class weights of maps: counted over train, the plain loss where nothing is rare."""

import numpy as np
import pytest
import tiny_masks
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from hf_sft import run
from hf_sft.errors import RecipeError
from hf_sft.loaders import Coco, MaskFolder
from hf_sft.recipe import Recipe
from hf_sft.resources import locator
from hf_sft.tasks import ImageSegmentation
from hf_sft.tasks.segmentation_weights import (
    LEFT_OUT,
    BalancedPixels,
    leave_out_as_torch_,
    pixel_counts,
)

BALANCED = {"class_weights": "balanced"}


def even_folder(folder, count=4):
    """As many pixels of each class in every mask, and a row of pixels that are none."""
    tiny_masks.mask_folder(folder, count, 2)
    for split in ("train", "test"):
        for file in sorted((folder / split / "masks").glob("*.png")):
            classes = np.repeat([[0, 1, 2]], 24, 0).repeat(16, 1).astype(np.uint8)
            classes[0] = 255
            Image.fromarray(classes).save(file)
            noise = np.random.default_rng(len(file.name)).integers(0, 255, (24, 48, 3))
            Image.fromarray(noise.astype(np.uint8)).save(folder / split / "images" / file.name)
    return folder


def test_the_closed_form():
    loss = BalancedPixels(torch.tensor([3, 1, 0]))
    assert loss.weights.tolist() == [4 / 6, 4 / 2, 1.0]
    logits = torch.randn(1, 3, 1, 3, requires_grad=True)
    labels = torch.tensor([[[0, 1, LEFT_OUT]]])
    logs = -logits.log_softmax(1)[0, :, 0]
    expected = (4 / 6 * logs[0, 0] + 2 * logs[1, 1]) / 2
    assert loss({"logits": logits}, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    with torch.no_grad():  # as an evaluation
        plain = (logs[0, 0] + logs[1, 1]) / 2
        assert float(loss({"logits": logits}, labels)) == pytest.approx(float(plain), rel=1e-6)


def test_a_step_is_the_same_however_it_is_cut():
    loss = BalancedPixels(torch.tensor([30, 5, 1]))
    logits, labels = torch.randn(4, 3, 6, 6, requires_grad=True), torch.randint(3, (4, 6, 6))
    labels[0, :5] = LEFT_OUT
    items = int((labels != LEFT_OUT).sum())
    parts = [loss({"logits": logits[part]}, labels[part], num_items_in_batch=items)
             for part in (slice(0, 1), slice(1, 4))]  # fmt: skip
    assert float(sum(parts)) == pytest.approx(float(loss({"logits": logits}, labels)), rel=1e-6)


def test_the_counts_are_those_of_all_masks_of_train(tmp_path):
    tiny_masks.mask_folder(tmp_path, 5, 1)
    task = ImageSegmentation(ignore_index=2)
    rows = task.check(MaskFolder(path=".").load(locator(tmp_path)))["train"]
    files = (tmp_path / "train" / "masks").glob("*.png")
    pixels = sum(np.bincount(np.asarray(Image.open(f)).ravel(), minlength=3) for f in files)
    assert pixels[2] > 0
    assert pixel_counts(rows, task.kind, 3).tolist() == [pixels[0], pixels[1], 0]


def test_outlines_are_counted_as_they_are_painted(tmp_path):
    tiny_masks.coco_file(tmp_path, "train", 4)
    task = ImageSegmentation()
    rows = task.check(Coco(train="train.json").load(locator(tmp_path)))["train"]
    pixels = sum(np.bincount(tiny_masks.scene(i, 48 + 2 * i, 40 + i)[1].ravel()) for i in range(4))
    found = pixel_counts(rows, task.kind, 3)
    assert found.sum() == pixels.sum()
    assert found[0] == pixels[0]


def test_equal_counts_give_the_models_own_loss(tmp_path):
    even_folder(tmp_path / "d")
    task = ImageSegmentation(**BALANCED)
    data = task.check(MaskFolder(path="d").load(locator(tmp_path)))
    model = tiny_masks.segformer()
    leave_out_as_torch_(model)
    loss = task.training_loss(data["train"], 0.0)
    labels = torch.randint(3, (2, 64, 64))
    labels[:, :9] = LEFT_OUT
    outputs = model.eval()(torch.randn(2, 3, 64, 64), labels=labels)
    assert float(loss(outputs, labels)) == pytest.approx(float(outputs.loss), rel=1e-6)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_run_on_equal_counts_is_the_unweighted_run(tmp_path, cut):
    even_folder(tmp_path / "d")
    tiny_masks.segformer_source(tmp_path / "source")
    found = []
    for task in ({}, BALANCED):
        training = {"max_steps": 3, "save_strategy": "no", "per_device_train_batch_size": 4 // cut,
                    "gradient_accumulation_steps": cut}  # fmt: skip
        path = tiny_masks.recipe(
            tmp_path, task, {"type": "mask-folder", "path": "d"}, {"name": "./source"},
            training={**training, "output_dir": str(tmp_path / f"out{len(found)}")},
        )  # fmt: skip
        report = run(Recipe.load(path)).data
        found.append((load_file(tmp_path / f"out{len(found)}/model/model.safetensors"), report))
    (plain, first), (weighted, second) = found
    assert all(torch.allclose(plain[n], weighted[n], atol=1e-6) for n in plain)
    assert second["metrics"]["test"]["loss"] == pytest.approx(first["metrics"]["test"]["loss"])


def test_a_rare_class_pulls_as_hard_as_a_common_one():
    """One pixel in fifty, every logit alike."""
    loss, labels = BalancedPixels(torch.tensor([49, 1])), torch.zeros(1, 10, 5, dtype=torch.int64)
    labels[0, 0, 0] = 1
    logits = torch.zeros(1, 2, 10, 5, requires_grad=True)
    loss({"logits": logits}, labels).backward()
    share = logits.grad[0, 1]
    assert float(-share[0, 0]) == pytest.approx(float(share.sum() - share[0, 0]), rel=1e-5)


def test_models_and_problems_without_weights_of_pixels_are_refused():
    with pytest.raises(ValidationError, match="class_weights is for problem: semantic"):
        ImageSegmentation(problem="instance", **BALANCED)
    with pytest.raises(RecipeError, match="mask2former learns masks"):
        leave_out_as_torch_(tiny_masks.mask2former())
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 8, 8],
                "depths": [1, 1, 1, 1], "out_features": stages}  # fmt: skip
    small = {"backbone_config": backbone, "hidden_size": 8, "num_labels": 3}
    with pytest.raises(RecipeError, match="upernet has an auxiliary head"):
        leave_out_as_torch_(UperNetForSemanticSegmentation(UperNetConfig(**small)))
    model = UperNetForSemanticSegmentation(UperNetConfig(**small, use_auxiliary_head=False))
    leave_out_as_torch_(model)
    assert model.config.loss_ignore_index == LEFT_OUT
