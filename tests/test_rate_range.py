"""The learning-rate range test: what it suggests, and that it leaves everything as it was."""

import math
import random
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from test_cli import refused
from tiny_run import text_recipe
from transformers import BertConfig, BertForSequenceClassification

from hf_sft.cli import main
from hf_sft.recipe import Recipe
from hf_sft.running import prepare
from hf_sft.searching.rate_range import is_divergent, judge, rates_between, smooth
from hf_sft.searching.rate_sweep import sweep
from hf_sft.training_arguments import training_arguments


def test_rates_rise_by_one_factor_and_meet_both_ends():
    rates = rates_between(1e-5, 1.0, 11)
    assert (rates[0], rates[-1]) == (1e-5, 1.0)
    assert np.allclose(np.diff(np.log(rates)), math.log(10) / 2)


def test_the_running_mean_of_a_constant_is_that_constant():
    assert smooth([2.5] * 7) == pytest.approx([2.5] * 7)


def test_the_suggestion_is_the_steepest_fall_and_a_tenth_of_divergence_at_most():
    rates = rates_between(1e-6, 1.0, 61)
    falling = [2 - 1 / (1 + (1e-3 / rate) ** 2) for rate in rates]  # steepest over log rate: 1e-3
    found = judge(rates, falling)
    assert found.diverged is None
    assert 1e-3 <= found.suggestion == found.steepest < 1e-2  # the running mean comes later
    until = next(i for i, rate in enumerate(rates) if rate >= 4e-3)
    found = judge(rates, [*falling[:until], math.inf])
    assert found.diverged == rates[until]
    assert found.suggestion == min(found.steepest, rates[until] / 10)
    assert judge(rates, [1 + i for i in range(15)]).suggestion is None
    assert is_divergent([1.0] * 9 + [100.0])
    assert not is_divergent([1.0] * 9 + [2.0])


PROBE = {"freeze": {"type": "linear-probe"}}
LPFT = {"freeze": {"type": "lp-ft"}, "penalty": {"type": "l2-sp", "lambda": 0.01}}
PRIORS = [{"penalty": [{"type": name}]} for name in ("fisher-sp", "similarity", "lwf", "mixout")]


@pytest.mark.parametrize("blocks", [{}, PROBE, LPFT, *PRIORS], ids=str)
def test_a_sweep_leaves_the_trainer_bit_for_bit(tmp_path, monkeypatch, blocks):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))  # Fisher information is kept there
    path = text_recipe(tmp_path, **blocks)
    if "lwf" in str(blocks):  # it holds the answers of the source's own head
        config = BertConfig.from_pretrained(tmp_path / "source", num_labels=3)
        BertForSequenceClassification(config).save_pretrained(tmp_path / "source")
    recipe = Recipe.load(path)
    trainer = prepare(recipe, training_arguments(recipe)).trainer
    trainer.model.eval()
    model = trainer.model
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    trains = {n: p.requires_grad for n, p in model.named_parameters()}
    plan, anchors = trainer.follower.memory(), dict(trainer.starting_point.probed)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    seen = []
    step = trainer.training_step
    monkeypatch.setattr(
        trainer, "training_step", lambda *args: (seen.append(_sum(model)), step(*args))[1]
    )
    found = sweep(trainer, rates_between(1e-4, 1e-1, 12))
    assert len(found.losses) == 12
    assert len(set(seen)) == 12  # it has trained
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trains
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert trainer.optimizer is None
    assert (trainer.follower.memory(), trainer.starting_point.probed) == (plan, anchors)
    assert (trainer.progress, trainer.state.max_steps) == (0.0, 0)


def test_under_a_policy_over_time_the_rate_is_one_for_what_opens_later(tmp_path):
    rates = rates_between(1e-6, 1e2, 40)
    faster = [{"role": "head", "multiplier": 100}]
    policies = {"all": None, "lp-ft": {"type": "lp-ft"}, "gradual": {"type": "gradual"},
                "stall": {"type": "gradual", "when": "stall"}}  # fmt: skip
    found = {}
    for name, freeze in policies.items():
        recipe = Recipe.load(
            text_recipe(tmp_path, penalty=None, freeze=freeze, learning_rates=faster)
        )
        found[name] = sweep(prepare(recipe, training_arguments(recipe)).trainer, rates)
    assert found["all"].phase == ""
    assert "all that it ever trains open, as freeze lp-ft has it from" in found["lp-ft"].phase
    for name in ("lp-ft", "gradual"):
        assert found[name].losses == pytest.approx(found["all"].losses, rel=1e-3), name
        assert found[name].suggestion == found["all"].suggestion
    assert "by signals was not measured" in found["stall"].phase


def _sum(model):
    return float(sum(p.detach().double().sum() for p in model.parameters()))


def test_the_command_suggests_draws_and_writes_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = text_recipe(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["--from", "1e-4", "--to", "1e3", "--steps", "40", "--picture", "lr.svg"]
    pushed = "training.push_to_hub=true"  # without a token or a network: nothing is pushed
    assert main(["lr", str(path), pushed, *words]) == 0
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "lr.svg"])
    assert "training.learning_rate=" in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "lr.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "0 < from < to" in refused(capsys, "lr", path, "--from", "1", "--to", "0.1")
    assert "--picture" in refused(capsys, "lr", path, "--picture", str(tmp_path / "no" / "a.svg"))
