"""What is logged about the penalties is what it says, and looking changes nothing."""

from typing import Literal

import pytest
import tiny
import torch

from hf_sft import L2SP, LPFT, Ball, Similarity, TrainLast, TransferTrainer
from hf_sft.training.watch import Watch

OURS = {"pull_to_gradient", "gradient_drift_cosine"}
FRESH = ["classifier.weight", "classifier.bias"]


def trainer(folder, penalty, kind="bert", freeze=None, **changes):
    build, rows = tiny.KINDS[kind]
    args = tiny.arguments(folder, **changes)
    fresh = FRESH if kind == "bert" else []
    settings = {"penalty": penalty, "freeze": freeze, "fresh": fresh}
    return TransferTrainer(build(), args, train_dataset=rows(24), **settings)


def by_hand(run):
    """(‖∂Ω/∂θ‖/‖g‖, cos(g, θ − θ⁰)) by autograd of the formula, at the step that is being made."""
    theta, start = run.pull.theta, run.starting_point
    value = sum(p.value(theta, start, run.progress) for p in run.pull.weight_priors)
    names = [n for n, p in theta.items() if run.pull.pulls(n) and p.grad is not None]
    pulled = torch.autograd.grad(value, [theta[n] for n in names])
    flat = torch.cat([p.flatten() for p in pulled]).double()
    task = torch.cat([theta[n].grad.flatten() for n in names]).double()
    names = [n for n in start.copies if theta[n].grad is not None]
    g = torch.cat([theta[n].grad.flatten() for n in names]).double()
    d = torch.cat([(theta[n] - start.copies[n]).detach().flatten() for n in names]).double()
    return float(flat.norm() / task.norm()), float(g @ d / (g.norm() * d.norm()))


class Joined(L2SP):
    """A prior that sees all parameters at once, as LoRA-SP does."""

    type: Literal["joined"] = "joined"

    def add_gradient_(self, theta, start, scale=1.0, progress=0.0):
        super().add_gradient_(theta, start, scale, progress)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "penalties",
    [
        [L2SP(lambda_=0.3, head=0.1)],
        [L2SP(lambda_=0.3), L2SP(lambda_=0.1, head=0.2)],
        [L2SP(lambda_=0.3, apply="proximal")],
        [Joined(lambda_=0.3), L2SP(lambda_=0.1, head=0.2)],
    ],
)
def test_the_numbers_are_those_of_autograd(penalties, accumulation, tmp_path, monkeypatch):
    wanted, look = [], Watch.look
    run = trainer(tmp_path, penalties, gradient_accumulation_steps=accumulation)

    def looking(watch, scale):
        wanted.append(by_hand(run))
        look(watch, scale)

    monkeypatch.setattr(Watch, "look", looking)
    run.train()
    found = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(found) == len(wanted) == run.state.max_steps
    assert "gradient_drift_cosine" not in found[0]  # nothing has moved yet
    for entry, (ratio, _) in zip(found, wanted, strict=True):
        assert entry["pull_to_gradient"] == pytest.approx(ratio, rel=1e-4)
    for entry, (_, cosine) in zip(found[1:], wanted[1:], strict=True):
        assert entry["gradient_drift_cosine"] == pytest.approx(cosine, rel=1e-4, abs=1e-6)


def test_the_scale_of_a_loss_scaler_makes_no_difference(tmp_path):
    run = trainer(tmp_path, L2SP(lambda_=0.3, head=0.1))
    run.train()
    generator = tiny._generator(3)
    for parameter in run.model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    plain = run.watch._measure(1.0)
    for parameter in run.model.parameters():
        parameter.grad *= 2.0**16
    scaled = run.watch._measure(2.0**16)
    assert plain.keys() == scaled.keys() == OURS
    for key in OURS:
        assert float(scaled[key]) == pytest.approx(float(plain[key]), rel=1e-6)


def test_looking_changes_nothing(tmp_path, monkeypatch):
    penalties = [L2SP(lambda_=0.1, head=0.01), Ball(radius=0.1)]
    watched = trainer(tmp_path / "a", penalties)
    watched.train()
    assert set(watched.state.log_history[-2]) >= OURS
    monkeypatch.setattr(Watch, "look", lambda self, scale: None)
    alone = trainer(tmp_path / "b", penalties)
    alone.train()
    assert tiny.different(tiny.weights(watched.model), tiny.weights(alone.model)) == []


@pytest.mark.parametrize(
    ("penalty", "keys"),
    [
        (None, set()),
        (L2SP(lambda_=0.0, head=0.0), set()),
        (L2SP(), OURS),
        (Ball(), {"gradient_drift_cosine"}),
        (Similarity(), {"gradient_drift_cosine"}),
        ([Similarity(), L2SP()], OURS),
    ],
)
def test_only_what_a_penalty_gives_is_logged(penalty, keys, tmp_path):
    run = trainer(tmp_path, penalty)
    run.train()
    logged = {key for entry in run.state.log_history for key in entry}
    assert logged & OURS == keys


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"logging_steps": 4}, {4}),
        ({"logging_steps": 4, "logging_first_step": True}, {1, 4}),
        ({"logging_strategy": "epoch"}, {3, 6}),
        ({"logging_strategy": "epoch", "gradient_accumulation_steps": 2}, {2, 4}),
        ({"logging_strategy": "no"}, set()),
    ],
)
def test_only_logged_steps_are_measured(changes, steps, tmp_path, monkeypatch):
    measured, measure = [], Watch._measure
    run = trainer(tmp_path, L2SP(), **changes)

    def measuring(watch, scale):
        measured.append(run.state.global_step + 1)
        return measure(watch, scale)

    monkeypatch.setattr(Watch, "_measure", measuring)
    run.train()
    logged = {entry["step"] for entry in run.state.log_history if "loss" in entry}
    assert set(measured) == logged == steps


def test_what_is_frozen_and_what_is_probed_is_told_apart(tmp_path):
    """Batch statistics, a frozen stem, a head with an anchor of its own: all go through."""
    for number, (kind, freeze) in enumerate([("resnet", TrainLast(count=1)), ("bert", LPFT())]):
        run = trainer(tmp_path / str(number), L2SP(lambda_=0.1, head=0.1), kind, freeze)
        run.train()
        assert set(run.state.log_history[-2]) >= OURS
