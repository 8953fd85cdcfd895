"""The plan that is printed before training is what the training then does."""

from typing import ClassVar, Literal

import pytest
import tiny

from hf_sft import (
    L2SP,
    LISA,
    LPFT,
    AutoFreeze,
    AutoRGN,
    Ball,
    Gradual,
    LinearProbe,
    Similarity,
    TrainLast,
    TransferTrainer,
    outlook,
    plan,
)
from hf_sft.freezing import FreezePolicy
from hf_sft.training.rates import LearningRate

FRESH = {"bert": ["classifier.weight", "classifier.bias"], "resnet": []}


class Warming(L2SP):
    """λ that grows with progress, as RecAdam's does."""

    type: Literal["warming"] = "warming"

    def schedule(self, progress):
        return progress


class Fading(FreezePolicy):
    """A learning rate of its own at every step."""

    dynamic: ClassVar[bool] = True
    multiplies: ClassVar[bool] = True
    type: Literal["fading"] = "fading"

    def open(self, groups, progress, signals):
        return frozenset(groups.parameters)

    def multipliers(self, groups, progress, signals):
        return dict.fromkeys(groups.parameters, 1 - progress)


def trainer(folder, freeze=None, penalty=None, kind="bert", rules=(), **changes):
    build, rows = tiny.KINDS[kind]
    args = tiny.arguments(folder, **{"num_train_epochs": 4, **changes})
    settings = {"penalty": penalty, "freeze": freeze, "fresh": FRESH[kind]}
    data = rows(24)
    return TransferTrainer(build(), args, train_dataset=data, learning_rates=rules, **settings)


def row(run, name):
    return next(row for row in plan.rows(run) if row["name"] == name)


@pytest.mark.parametrize("kind", ["bert", "resnet"])
@pytest.mark.parametrize(
    "freeze",
    [None, TrainLast(count=1), LPFT(), Gradual(), LISA(count=1), LPFT(norm_affine="train")],
)
def test_what_is_planned_is_what_happens(freeze, kind, tmp_path):
    """Parameters, learning rates and modes at every step, as the optimizer finds them."""
    rules = [LearningRate(decay=0.5)]
    run = trainer(tmp_path, freeze, L2SP(), kind, rules, lr_scheduler_type="constant")
    planned, happened = plan.rows(run), []

    class Recording(type(run.memory)):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            rates = {id(p): g["lr"] for g in run.optimizer.param_groups for p in g["params"]}
            weights = dict(run.model.named_parameters())
            found = {}
            for group in run.layer_groups:
                opened = [weights[n] for n in group.parameters if weights[n].grad is not None]
                rate = max((rates[id(p)] for p in opened), default=0.0)
                found[group.name] = sum(p.numel() for p in opened), rate
            happened.append((state.global_step, found))

    run.add_callback(Recording(run))
    run.train()
    assert len(happened) == run.state.max_steps == outlook.steps(run)
    for step, found in happened:
        for entry in planned:
            at = step / run.state.max_steps
            phases = [p for p in entry["phases"] if p["from"] <= at < p["to"]]
            assert len(phases) == 1
            trainable, rate = found[entry["name"]]
            assert phases[0]["trainable"] == trainable
            assert phases[0]["learning_rate"] == pytest.approx(rate)
    assert [r["trainable"] for r in plan.rows(run)] == [r["trainable"] for r in planned]


def test_phases_follow_each_other_without_a_gap(tmp_path):
    for entry in plan.rows(trainer(tmp_path, LISA(count=1), L2SP())):
        phases = entry["phases"]
        assert (phases[0]["from"], phases[-1]["to"]) == (0, 1)
        assert [p["to"] for p in phases[:-1]] == [p["from"] for p in phases[1:]]
        for before, after in zip(phases[:-1], phases[1:], strict=True):
            assert {**before, "from": 0, "to": 0} != {**after, "from": 0, "to": 0}


def test_a_static_policy_has_one_phase(tmp_path):
    for entry in plan.rows(trainer(tmp_path, TrainLast(count=1), L2SP())):
        assert len(entry["phases"]) == 1
    text = plan.table(trainer(tmp_path, TrainLast(count=1)), "s", {"train": 24})
    assert "when" not in text
    assert "0–100 %" not in text


def test_linear_probing_then_fine_tuning_is_two_phases(tmp_path):
    run = trainer(tmp_path, LPFT(probe=0.25), L2SP(lambda_=0.02))
    block, head = row(run, "bert.encoder.layer.0"), row(run, "head")
    assert [(p["from"], p["to"], bool(p["trainable"])) for p in block["phases"]] == [
        (0, 0.25, False),
        (0.25, 1, True),
    ]
    assert [p["norm"] for p in block["phases"]] == ["eval", "train"]
    # Probed, the head is anchored where it stands, with λ.
    assert [p["lambda"] for p in head["phases"]] == [0.0, 0.02]
    text = plan.table(run, "s", {"train": 24})
    assert "25–100 %" in text
    assert "0–25 %" in text


def test_a_strength_that_changes_is_a_range(tmp_path):
    entry = row(trainer(tmp_path, None, Warming(lambda_=0.5)), "bert.encoder.layer.0")
    assert (entry["phases"][0]["lambda"], entry["phases"][0]["lambda_end"]) == (0.0, 0.5)
    assert entry["lambda"] == 0.5
    text = plan.table(trainer(tmp_path, None, Warming(lambda_=0.5)), "s", {})
    assert "0 → 0.5" in text


def test_rates_that_change_at_every_step_are_one_range(tmp_path):
    run = trainer(tmp_path, Fading(), max_steps=5000, learning_rate=0.5)
    phases = row(run, "head")["phases"]
    assert len(phases) == 1
    assert (phases[0]["from"], phases[0]["to"]) == (0, 1)
    assert phases[0]["learning_rate"] == 0.5
    assert phases[0]["learning_rate_end"] == pytest.approx(0.5 / outlook.SAMPLES)


@pytest.mark.parametrize(
    ("freeze", "waits"),
    [
        (AutoFreeze(), "autofreeze also follows the task's gradient at every step"),
        (AutoRGN(), "auto-rgn also follows the task's gradient"),
        (Gradual(when="stall"), "gradual also follows the score of every evaluation"),
        (Gradual(), None),
        (LPFT(), None),
    ],
)
def test_a_policy_that_follows_signals_says_what_it_waits_for(freeze, waits, tmp_path):
    text = plan.table(trainer(tmp_path, freeze, eval_strategy="no"), "s", {})
    assert ("before it has seen any" in text) is (waits is not None)
    assert waits is None or waits in text


def test_after_training_only_what_has_trained_counts(tmp_path):
    """AutoFreeze may train everything; a stall that never comes opens nothing."""
    build, rows = tiny.KINDS["bert"]
    args = tiny.arguments(tmp_path, eval_strategy="epoch", num_train_epochs=1)
    freeze = Gradual(when="stall", patience=5)
    data = {"train_dataset": rows(16), "eval_dataset": rows(8)}
    run = TransferTrainer(build(), args, freeze=freeze, fresh=FRESH["bert"], **data)
    run.train()
    assert [r["name"] for r in plan.rows(run) if r["trainable"]] == ["head"]


@pytest.mark.parametrize(
    ("mode", "wanted"), [("batch", "batch"), ("running", "eval"), ("follow", "eval")]
)
def test_the_mode_of_batch_norm_is_told(mode, wanted, tmp_path):
    run = trainer(tmp_path, TrainLast(count=1, norm_mode=mode), kind="resnet")
    assert row(run, "block 0")["norm"] == wanted


def test_every_penalty_is_told_with_its_formula(tmp_path):
    text = plan.table(trainer(tmp_path, None, [L2SP(), Similarity(), Ball()]), "s", {})
    for penalty in (L2SP, Similarity, Ball):
        assert penalty.formula in text


@pytest.mark.parametrize(("freeze", "told"), [(LinearProbe(), True), (TrainLast(count=1), False)])
def test_a_pull_that_has_nothing_to_hold_is_told(freeze, told, tmp_path):
    text = plan.table(trainer(tmp_path, freeze, L2SP()), "s", {})
    assert ("Nothing of the source trains: l2-sp can act" in text) == told


def test_telling_the_plan_changes_nothing(tmp_path):
    outcomes = []
    for tells in (True, False):
        run = trainer(tmp_path / str(tells), LISA(count=1), L2SP())
        if tells:
            plan.table(run, "s", {})
        run.train()
        outcomes.append(tiny.weights(run.model))
    assert tiny.different(*outcomes) == []
