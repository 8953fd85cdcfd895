"""hf-sft speed: a recipe's own steps in variants, which leave nothing behind."""

import pytest
import torch
from tiny_image_run import image_recipe
from tiny_run import text_recipe

from hf_sft.cli import main
from hf_sft.recipe import Recipe
from hf_sft.running import prepare
from hf_sft.searching import speed as speeds
from hf_sft.searching.speed import PLAIN, Speed, speed, told
from hf_sft.searching.step_times import Steps
from hf_sft.training.trainer import TransferTrainer
from hf_sft.training_arguments import training_arguments


def found(**times):
    """Two rounds of a step each, in seconds; the losses of ``bf16`` are 1 % off."""
    words = {PLAIN: [], "channels_last": ["model.channels_last=true"], "bf16": ["training.bf16=1"]}
    given = {PLAIN: [1.0, 1.0], **times}
    rounds = {n: [Steps([t], [2.02 if n == "bf16" else 2.0]) for t in given[n]] for n in given}
    return Speed({n: words[n] for n in given}, "CPU", rounds)


def test_what_is_said_to_be_faster_is_so_in_every_round():
    assert "leave the recipe as it is" in told(found(bf16=[0.5, 0.97], channels_last=[1.2, 1.1]))
    both = found(bf16=[0.5, 0.9], channels_last=[0.6, 0.6])
    assert both.best() == "channels_last"
    assert told(both).endswith("To set it: model.channels_last=true")
    assert both.verdict("bf16") == "faster"
    assert abs(both.apart("bf16") - 0.01) < 1e-9


def test_each_variant_trains_its_own_way_on_the_same_batches(tmp_path, monkeypatch, capsys):
    seen = []
    step = TransferTrainer.training_step

    def watched(self, model, inputs, *rest):
        weight = self.model.timm_model.conv1[3].weight  # 8 channels to 8
        laid = weight.is_contiguous(memory_format=torch.channels_last)
        seen.append((laid, self.args.bf16, float(inputs["pixel_values"].double().sum())))
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(TransferTrainer, "training_step", watched)
    recipe = image_recipe(tmp_path, penalty={"type": "l2-sp", "lambda": 0.01})
    before = sorted(tmp_path.rglob("*"))
    assert main(["speed", str(recipe), "--rounds", "2", "--steps", "1"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    kinds = [(False, False), (True, False), (False, True), (True, True)]
    expected = [kind for kind in kinds for _ in range(3)]  # two steps to warm up, and one
    backwards = [kind for kind in kinds[::-1] for _ in range(3)]
    assert [kind for *kind, _ in seen] == [list(k) for k in (*expected, *expected, *backwards)]
    batches = [pixels for *_, pixels in seen]
    assert batches == batches[:3] * 12
    told = capsys.readouterr().out
    assert all(name in told for name in ("channels_last", "bf16", "losses apart", "every round"))


def failing(monkeypatch, fails):
    """Variants for which ``fails`` holds cannot be built; the overrides of all, as they come."""
    trainer, asked = speeds._trainer, []

    def broken(path, base, given, more):
        asked.append(more)
        if fails(more):
            raise RuntimeError("no such arithmetic\nand more")
        return trainer(path, base, given, more)

    monkeypatch.setattr(speeds, "_trainer", broken)
    return asked


def test_what_cannot_be_had_is_left_out_and_told(tmp_path, monkeypatch):
    failing(monkeypatch, lambda more: "training.bf16=true" in more)
    measured = speed(image_recipe(tmp_path), [], rounds=2, steps=1)
    assert list(measured.rounds) == [PLAIN, "channels_last"]
    assert "bf16: not here: no such arithmetic\n" in told(measured)


def test_nothing_is_timed_where_no_variant_is_left(tmp_path, monkeypatch):
    asked = failing(monkeypatch, bool)
    measured = speed(text_recipe(tmp_path), [], rounds=2, steps=1)  # without a convolution
    assert len(asked) == 2
    assert "bf16: not here: no such arithmetic\nNothing to compare" in told(measured)


def test_a_broken_recipe_is_found_at_once(tmp_path, monkeypatch):
    asked = failing(monkeypatch, lambda more: True)
    with pytest.raises(RuntimeError, match="no such arithmetic"):
        speed(text_recipe(tmp_path), [], rounds=2, steps=1)
    assert asked == [[]]


def variants(path, *overrides):
    recipe = Recipe.load(path, overrides)
    return speeds._variants(recipe, prepare(recipe, training_arguments(recipe)), False)


def test_what_the_recipe_sets_is_tried_without(tmp_path):
    sets = ["model.channels_last=true", "training.bf16=true", "training.use_cpu=true"]
    path = image_recipe(tmp_path)
    channels, half = ["model.channels_last=false"], ["training.bf16=false"]
    off = {"channels_last off": channels, "bf16 off": half}
    found = variants(path, *sets)
    assert found == {PLAIN: [], **off, "channels_last off, bf16 off": [*channels, *half]}
    compiled = variants(path, "training.torch_compile_mode=default")["torch_compile off"]
    back = Recipe.load(path, ["training.torch_compile_mode=default", *compiled])
    assert not training_arguments(back).torch_compile


def test_the_first_phase_of_a_policy_over_time_is_named(tmp_path):
    overrides = ["freeze={type: lp-ft, probe: 0.5}"]
    measured = speed(text_recipe(tmp_path), overrides, rounds=2, steps=1)
    assert "measured: the first phase of freeze lp-ft, not what it opens later." in told(measured)
    assert "first phase" not in told(found(bf16=[1.0, 1.0]))


def test_wrong_questions_are_refused(tmp_path, capsys, monkeypatch):
    recipe = str(text_recipe(tmp_path))
    assert main(["speed", recipe, "--rounds", "1"]) == 2
    for command, option in (("speed", "--rounds"), ("speed", "--steps"), ("lr", "--steps")):
        with pytest.raises(SystemExit, match="2"):
            main([command, recipe, option, "0"])
        assert f"{option}: a whole number of at least 1" in capsys.readouterr().err
    assert main(["speed", recipe, "training.max_steps=3", "--rounds", "2"]) == 2
    assert "training.max_steps=7" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["speed", recipe]) == 2
    assert "one process" in capsys.readouterr().err
