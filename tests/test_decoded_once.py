"""No image is decoded twice for one purpose: an epoch of training, a pass of an evaluation."""

from collections import Counter

import datasets
import pytest
import tiny_masks
from tiny_pictures import ONE, picture_recipe

from hf_sft import run
from hf_sft.recipe import Recipe
from hf_sft.training.trainer import TransferTrainer

PROBED = 2
SHORT = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "no",
         "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}  # fmt: skip


def classes(folder):
    return picture_recipe(folder, {**ONE, "augment": "basic"}, "vit", rows=8, training=SHORT)


def masks(folder):
    """Images and their masks."""
    tiny_masks.mask_folder(folder / "d", 6, 3)
    tiny_masks.segformer_source(folder / "source")
    data, model = {"type": "mask-folder", "path": "d"}, {"name": "./source"}
    return Recipe.load(tiny_masks.recipe(folder, {"augment": "basic"}, data, model, training=SHORT))


@pytest.fixture
def passes(monkeypatch):
    """Per epoch of training and per pass of an evaluation: how often each file was decoded."""
    found, open_ones = [], []

    def decoded(kind, value, *args, original=datasets.Image.decode_example, **kwargs):
        if open_ones:
            open_ones[-1][str(value["path"])] += 1
        return original(kind, value, *args, **kwargs)

    def counted(name, kind):
        original = getattr(TransferTrainer, name)

        def wrapped(self, *args, **kwargs):
            open_ones.append(Counter())
            result = original(self, *args, **kwargs)
            found.append((kind, open_ones.pop()))
            return result

        monkeypatch.setattr(TransferTrainer, name, wrapped)

    monkeypatch.setattr(datasets.Image, "decode_example", decoded)
    counted("evaluation_loop", "evaluation")
    counted("train", "training")
    return found


@pytest.mark.parametrize(
    ("build", "train", "test"), [(classes, 8, 10), (masks, 12, 6)], ids=["classes", "masks"]
)
def test_images_are_decoded_once_an_epoch_and_once_a_pass(tmp_path, passes, build, train, test):
    """Files of train: images, and masks where there are some; likewise of test."""
    run(build(tmp_path))
    training = [counts for kind, counts in passes if kind == "training"]
    assert [len(counts) for counts in training] == [train]
    again = [count - SHORT["num_train_epochs"] for count in training[0].values()]
    assert set(again) <= {0, 1}  # once more: the rows by which the loss is found out
    assert sum(again) <= PROBED * (2 if build is masks else 1)
    evaluations = [counts for kind, counts in passes if kind == "evaluation"]
    assert len(evaluations) >= SHORT["num_train_epochs"]
    assert all(set(counts.values()) == {1} for counts in evaluations)
    held = [counts for counts in evaluations if not counts.keys() & training[0].keys()]
    assert [len(counts) for counts in held] == [test] * len(held)
    assert len(held) >= SHORT["num_train_epochs"]
