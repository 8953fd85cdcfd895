"""Augmentation and mixing: only of train, the same for a seed whatever makes the batches."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from tiny_pictures import COLOURS, FLAGS, ONE, picture_recipe
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from transformers import TrainerCallback, default_data_collator

from hf_sft import running
from hf_sft.running import prepare, run
from hf_sft.tasks.augmentation import DrawnRows, alone, with_places
from hf_sft.tasks.class_weights import CrossEntropy
from hf_sft.tasks.mixing import NUMBER, Mixing
from hf_sft.training_arguments import training_arguments

MIXED = {**ONE, "augment": "strong", "mixup": 0.4, "cutmix": 1.0}


def drawn_numbers(batch):
    return {"x": torch.rand(len(batch["i"]), 3), "i": batch["i"]}


def drawn(count=10, number=None):
    rows = Dataset.from_dict({"i": list(range(count))}).with_transform(drawn_numbers)
    return DrawnRows(rows, number)


# ---- what a row is given ----


def test_a_draw_depends_on_seed_epoch_and_row_alone():
    first, second = drawn(), drawn()
    there = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        first.draws.begin(seed, epoch)
        second.draws.begin(seed, epoch)
        there[seed, epoch] = torch.stack([row["x"] for row in first])
        backwards = [second[i]["x"] for i in reversed(range(10))]
        assert torch.equal(there[seed, epoch], torch.stack(backwards[::-1]))
    whole = torch.cat(list(there.values()))
    assert len(whole.unique(dim=0)) == 30


def test_drawing_leaves_the_generator_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(drawn())
    assert torch.equal(torch.rand(4), expected)


def test_workers_that_live_on_hear_of_the_epoch():
    rows = drawn(number=NUMBER)
    alive = DataLoader(rows, 4, num_workers=2, persistent_workers=True)
    for epoch in range(2):
        rows.draws.begin(7, epoch)
        for ours, theirs in zip(DataLoader(rows, 4), alive, strict=True):
            assert torch.equal(ours["x"], theirs["x"])
            assert torch.equal(ours[NUMBER], theirs[NUMBER])


@pytest.mark.parametrize("preset", ["basic", "strong"])
def test_a_picture_is_changed_and_stays_one(preset):
    image = Image.effect_noise((40, 60), 80).convert("RGB")
    torch.manual_seed(0)
    found = [alone(preset)(image) for _ in range(20)]
    areas = [one.width * one.height / 2400 for one in found]
    assert all(0.45 <= area <= 1 for area in areas)
    assert len({one.tobytes() for one in found}) == 20
    assert {one.mode for one in found} == {"RGB"}


def test_no_preset_is_no_transform():
    assert alone("none") is None
    assert with_places("none") is None


@pytest.mark.parametrize("preset", ["basic", "strong"])
def test_boxes_and_masks_move_with_the_picture(preset):
    """What is inside the box is what the mask marks, wherever both have gone."""
    torch.manual_seed(0)
    kept = 0
    for _ in range(20):
        pixels, marked = torch.zeros(3, 40, 60, dtype=torch.uint8), torch.zeros(40, 60)
        pixels[:, 10:20, 30:50], marked[10:20, 30:50] = 255, 1
        image, box, mask = with_places(preset)(
            tv_tensors.Image(pixels),
            tv_tensors.BoundingBoxes([[30.0, 10, 50, 20]], format="XYXY", canvas_size=(40, 60)),
            tv_tensors.Mask(marked),
        )
        assert mask.shape == image.shape[1:]
        left, top, right, bottom = box[0].int().tolist()
        assert int(mask.sum()) == max(0, right - left) * max(0, bottom - top)
        assert bool((mask[top:bottom, left:right] == 1).all())
        if preset == "basic":
            assert torch.equal(image[0] == 255, mask == 1)
        kept += int(mask.sum()) > 0
    assert kept > 10


# ---- mixing ----


def rows_to_mix(count, number=True):
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.rand(3, 8, 8, generator=generator),
         "labels": [float(i % 3 == k) for k in range(3)], **({NUMBER: 100 + i} if number else {})}
        for i in range(count)
    ]  # fmt: skip


def test_a_mixture_is_in_proportion():
    plain = default_data_collator(rows_to_mix(5, number=False))
    batch = Mixing(1.0, None)(rows_to_mix(5))
    assert set(batch) == {"pixel_values", "labels"}
    share = float(batch["labels"][0, 0])
    assert 0 < share < 1
    for key in batch:
        expected = share * plain[key] + (1 - share) * plain[key].roll(1, 0)
        assert torch.allclose(batch[key], expected, atol=1e-6)


def test_a_cut_is_in_proportion():
    plain = default_data_collator(rows_to_mix(5, number=False))["pixel_values"]
    batch = Mixing(None, 1.0)(rows_to_mix(5))
    left = (batch["pixel_values"] == plain).all(1).float().mean((1, 2))
    assert 0 < float(left[0]) < 1
    own = [float(batch["labels"][i, i % 3]) for i in range(5)]
    assert own == pytest.approx(left.tolist(), abs=1e-6)


def test_a_mixture_depends_on_its_rows_alone_and_other_rows_are_left():
    mixing = Mixing(0.4, 1.0)
    torch.manual_seed(1)
    first = mixing(rows_to_mix(4))
    torch.manual_seed(2)
    again = mixing(rows_to_mix(4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    still = mixing(rows_to_mix(4, number=False))
    plain = default_data_collator(rows_to_mix(4, number=False))
    assert all(torch.equal(still[key], plain[key]) for key in plain)


def test_the_loss_of_a_mixture_is_the_mixture_of_losses_however_a_step_is_cut():
    logits, labels = torch.randn(8, 3), torch.randint(3, (8,))
    share, onehot = 0.3, torch.nn.functional.one_hot(labels, 3).float()
    soft = share * onehot + (1 - share) * onehot.roll(1, 0)
    ce = torch.nn.functional.cross_entropy
    expected = share * ce(logits, labels) + (1 - share) * ce(logits, labels.roll(1, 0))
    loss = CrossEntropy()
    assert float(loss({"logits": logits}, soft)) == pytest.approx(float(expected), rel=1e-5)
    items = soft.numel()  # as Trainer counts them
    parts = [loss({"logits": logits[part]}, soft[part], num_items_in_batch=items)
             for part in (slice(0, 3), slice(3, 8))]  # fmt: skip
    assert float(sum(parts)) == pytest.approx(float(expected), rel=1e-5)
    hard = loss({"logits": logits}, labels, num_items_in_batch=8)
    assert float(hard) == pytest.approx(float(ce(logits, labels)), rel=1e-5)


# ---- runs ----


def weights_of(folder):
    return load_file(folder / "out" / "model" / "model.safetensors")


def equal(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_rows_that_are_measured_are_never_drawn(tmp_path, monkeypatch):
    recipe = picture_recipe(tmp_path, MIXED)
    prepared = prepare(recipe, training_arguments(recipe))
    for split in ("train", "test"):  # the retention of a run without test rows looks at train
        rows = prepared.encoded[split]
        assert torch.equal(rows[1]["pixel_values"], rows[1]["pixel_values"])
        assert NUMBER not in rows[1]
    trained = prepared.trainer.train_dataset
    before = trained[1]["pixel_values"]
    trained.draws.begin(0, 1)
    assert not torch.equal(before, trained[1]["pixel_values"])
    still = prepared.trainer.get_eval_dataloader(prepared.encoded["test"])
    assert next(iter(still))["labels"].dtype == torch.int64


def test_the_number_of_workers_changes_nothing(tmp_path):
    found = []
    for number in (0, 2):
        folder = tmp_path / str(number)
        training = {"dataloader_num_workers": number, "per_device_train_batch_size": 6}
        run(picture_recipe(folder, MIXED, training=training))
        found.append(weights_of(folder))
    assert equal(*found)


@pytest.mark.parametrize("augment", ["none", "basic"])
def test_the_sources_outputs_are_kept_only_for_pictures_that_recur(tmp_path, augment):
    more = {"penalty": {"type": "similarity"}, "training": {"max_steps": 8}}
    recipe = picture_recipe(tmp_path, {**ONE, "augment": augment}, **more)
    trainer = prepare(recipe, training_arguments(recipe)).trainer
    kept = trainer.source_pass._remember(trainer)
    assert (kept > 0) == (augment == "none")


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize("step", [2, 3, 5])
def test_resuming_is_not_stopping(tmp_path, monkeypatch, step):
    """Three steps in an epoch: cut inside the first, after it, and inside the second."""
    training = {"per_device_train_batch_size": 8, "max_steps": 8}
    recipes = [picture_recipe(tmp_path / n, MIXED, training=training) for n in ("whole", "cut")]
    run(recipes[0])
    build = running.build_trainer

    def stopping(*args):
        trainer = build(*args)
        trainer.add_callback(StopAt(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(running, "build_trainer", stopping)
        patch.setattr(running, "measured", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(recipes[1])
    report = run(recipes[1]).data
    assert report["timing"]["steps"] == 8
    assert equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))


@pytest.mark.parametrize("kind", ["timm", "vit"])
@pytest.mark.parametrize("problem", ["one", "flags"])
def test_mixing_trains_both_libraries_with_a_pull(tmp_path, kind, problem):
    task = {"one": ONE, "flags": FLAGS}[problem] | {"mixup": 0.2, "cutmix": 1.0}
    more = {"penalty": {"type": "l2-sp", "lambda": 0.1}}
    report = run(picture_recipe(tmp_path, task, kind, **more)).data
    assert report["metrics"]["train"]["loss"] > 0
    assert report["penalty"]["value"] > 0
    assert set(report["labels"]) == (set(COLOURS) if problem == "flags" else {"few", "many"})


@pytest.mark.parametrize("kind", ["timm", "vit"])
def test_labels_that_are_not_mixed_train_as_classes_do(tmp_path, monkeypatch, kind):
    """Weighted and smoothed, cut into micro-batches of unequal size; λ = 1 for every batch."""
    task = {**ONE, "class_weights": "balanced"}
    training = {"label_smoothing_factor": 0.1, "per_device_train_batch_size": 7, "optim": "sgd",
                "gradient_accumulation_steps": 2}  # fmt: skip
    run(picture_recipe(tmp_path / "plain", task, kind, training=training))
    monkeypatch.setattr(Mixing, "__init__", lambda self, *alphas: setattr(self, "way", unmixed))
    run(picture_recipe(tmp_path / "soft", {**task, "mixup": 0.2}, kind, training=training))
    plain, soft = weights_of(tmp_path / "plain"), weights_of(tmp_path / "soft")
    floats = [name for name in plain if plain[name].is_floating_point()]
    assert max(float((plain[n] - soft[n]).abs().max()) for n in floats) < 1e-6


def unmixed(pictures, labels):
    return pictures, labels
