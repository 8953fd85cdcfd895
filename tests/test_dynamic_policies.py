"""Policies over time in real trainings: what moves when, resuming, the audit, checkpointing."""

import json
from functools import cache

import pytest
import tiny
import tiny_run
import torch
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainingArguments

from hf_sft import (
    L2SP,
    LISA,
    LPFT,
    AutoFreeze,
    AutoRGN,
    ChainThaw,
    Gradual,
    LayerGroups,
    Recipe,
    TrainLast,
    TransferTrainer,
)
from hf_sft import run as run_recipe
from hf_sft.errors import UserError
from hf_sft.training.optimizer_setup import expect_unused
from hf_sft.training.plan_follower import PlanFollower
from hf_sft.training.run_record import ANCHORS

STEPS = 12
POLICIES = {
    "lp-ft": LPFT(probe=0.25),
    "gradual": Gradual(over=0.5),
    "gradual-stall": Gradual(when="stall"),
    "chain-thaw": ChainThaw(),
    "lisa": LISA(count=1, every=0.15),
    "auto-rgn": AutoRGN(batches=2, every=0.25),
    "autofreeze": AutoFreeze(windows=6),
}
HEAD = {
    "bert": {"classifier.weight", "classifier.bias"},
    "resnet": {"timm_model.fc.weight", "timm_model.fc.bias"},
}
RENAMED = hasattr(TrainingArguments, "activation_checkpointing")  # in transformers 5.24
KEY = "activation_checkpointing" if RENAMED else "gradient_checkpointing"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
BERT = ["stem", "bert.encoder.layer.0", "bert.encoder.layer.1", "head"]
EXPECTED = {  # step -> what trains from it on, by the description of the policy
    "lp-ft": {0: BERT[3:], 3: BERT},
    "gradual": {0: BERT[3:], 2: BERT[2:], 4: BERT[1:], 6: BERT},
    "chain-thaw": {0: BERT[3:], 3: BERT[:1], 5: BERT[1:2], 8: BERT[2:3], 10: BERT},
    "auto-rgn": {0: BERT},
}


class Watch(TrainerCallback):
    """What every optimizer step changed, what it had planned, and what has optimizer state."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.before = tiny.weights(model)

    def on_step_end(self, args, state, control, model, optimizer, **kwargs):
        names = {id(p): n for n, p in model.named_parameters()}
        changed = set(tiny.different(self.before, tiny.weights(model)))
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        self.steps.append((changed, trains, {names[id(p)] for p in optimizer.state}))


def trainer(kind, name, folder, **changes):
    """12 steps in 3 epochs, AdamW with decay; the head is new, θ is pulled to θ⁰."""
    build, rows = tiny.KINDS[kind]
    settings = {
        "num_train_epochs": 3,
        "weight_decay": 0.1,
        "learning_rate": 0.03,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        **changes,
    }
    return TransferTrainer(
        build(dropout=0.2),
        tiny.arguments(folder, **settings),
        train_dataset=rows(32),
        eval_dataset=rows(44)[32:],
        penalty=L2SP(lambda_=0.05),
        freeze=POLICIES[name] if isinstance(name, str) else name,
        fresh=HEAD[kind],
    )


def outcome(run):
    """Weights, optimizer state and rates by parameter, anchors, RNG; what the plan remembers."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    moments = {
        f"{names[id(parameter)]} {key}": torch.as_tensor(value)
        for parameter, state in run.optimizer.state.items()
        for key, value in state.items()
    }
    anchors = {f"{name} anchor": value for name, value in run.starting_point.probed.items()}
    tensors = {**tiny.weights(run.model), **moments, **anchors, "rng": torch.get_rng_state()}
    rates = [(g["lr"], [names[id(p)] for p in g["params"]]) for g in run.optimizer.param_groups]
    return tensors, rates, run.follower.memory(), run.frozen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run, watch, folder) of a policy, trained once, with a checkpoint after every step."""

    @cache
    def run(kind, name):
        folder, watch = tmp_path_factory.mktemp(f"{kind}-{name}"), Watch()
        torch.manual_seed(0)
        built = trainer(kind, name, folder, save_strategy="steps", save_steps=1)
        built.add_callback(watch)
        built.train()
        assert len(watch.steps) == STEPS
        return built, watch, folder, outcome(built)

    return run


def transitions(run):
    return [entry["step"] for entry in run.follower.transitions]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_phase_trains_what_it_says(name, whole):
    run, watch, *_ = whole("bert", name)
    groups = {group.name: set(group.parameters) for group in run.layer_groups}
    assert list(groups) == BERT
    for step, (_, trains, _) in enumerate(watch.steps):
        phase = max(start for start in EXPECTED[name] if start <= step)
        assert trains == set().union(*(groups[n] for n in EXPECTED[name][phase])), step
    found = {e["step"]: list(e["trains"]) for e in run.follower.transitions}
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_what_is_frozen_does_not_move_in_any_step(kind, name, whole):
    """Parameters frozen again included, whatever decay and momentum they have; statistics too."""
    run, watch, *_ = whole(kind, name)
    parameters = dict(run.model.named_parameters())
    norms = {n for n, m in run.model.named_modules() if isinstance(m, _BatchNorm)}
    so_far = set()
    for step, (changed, trains, state) in enumerate(watch.steps):
        so_far |= trains
        assert changed & parameters.keys() <= trains, step
        still = trains - changed
        assert len(still) < 0.3 * len(trains), still
        moving = {n for n in norms if {f"{n}.weight", f"{n}.bias"} & trains}
        assert {n for n in changed if n.endswith(STATISTICS)} == {
            f"{n}.{key}" for n in moving for key in STATISTICS
        }
        assert state == so_far, "state of what has trained, and of nothing else"
    if name != "auto-rgn":
        assert len(transitions(run)) > 1, "something happened"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", ["bert", pytest.param("resnet", marks=pytest.mark.slow)])
def test_resuming_around_every_transition_is_not_stopping(kind, name, whole, tmp_path):
    """From the checkpoints before, at and after each: everything is equal, bit for bit."""
    run, _, folder, expected = whole(kind, name)
    at = transitions(run)[1:] or [2, 5]  # auto-rgn: where its rates change
    for step in sorted({s + d for s in at for d in (-1, 0, 1)} & set(range(1, STEPS))):
        torch.manual_seed(99)
        resumed = trainer(kind, name, tmp_path)
        resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        found = outcome(resumed)
        assert tiny.different(expected[0], found[0]) == [], step
        assert found[1:] == expected[1:], step


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_the_audit_is_right_at_the_end_and_at_every_checkpoint(kind, name, whole, tmp_path):
    run, _, folder, _ = whole(kind, name)
    assert run.starting_point.changed(run.model, run.frozen) == []
    everything = [*dict(run.model.named_parameters()), *dict(run.model.named_buffers())]
    moved = set(run.starting_point.changed(run.model, everything))
    missed = set(everything) - set(run.frozen) - moved - run.starting_point.fresh
    assert not {n for n in missed if n.endswith(STATISTICS)}
    for step in (1, 4):
        half = trainer(kind, name, tmp_path)
        half.memory.recall(folder / f"checkpoint-{step}")
        memory = json.loads(json.dumps(half.follower.memory()))
        assert memory == half.follower.memory()
        saved = torch.load(folder / f"checkpoint-{step}" / "optimizer.pt")
        trained = {n for n in run.ever_trains if n not in half.follower.idle}
        assert len(saved["state"]) == len(trained)


def test_what_never_opened_is_audited_too(tmp_path):
    """A policy that could open everything and did not: the report says so, bit for bit."""
    run = trainer("resnet", Gradual(when="stall", patience=50), tmp_path)
    run.train()
    assert run.ever_trains == set(dict(run.model.named_parameters()))
    assert set(run.frozen) >= run.ever_trains - HEAD["resnet"]
    assert any("running_mean" in name for name in run.frozen)
    assert run.starting_point.changed(run.model, run.frozen) == []


def test_stalls_are_those_of_the_evaluations(whole):
    """A part opens in the step after an evaluation without a better loss."""
    run, *_ = whole("bert", "gradual-stall")
    losses = {e["step"]: e["eval_loss"] for e in run.state.log_history if "eval_loss" in e}
    best, opens = float("inf"), [0]
    for step, loss in losses.items():
        if loss >= best and step < STEPS and len(opens) < 4:
            opens.append(step)
        best = min(best, loss)
    assert transitions(run) == opens
    assert len(opens) > 1


def test_waiting_for_scores_without_evaluations_is_refused(tmp_path):
    run = trainer("bert", "gradual-stall", tmp_path, eval_strategy="no")
    with pytest.raises(UserError, match="set training.eval_strategy"):
        run.train()


def test_a_gradient_from_before_is_dropped_when_its_parameter_freezes():
    """Else the optimizer would take it for a step's, with decay and momentum."""
    model = tiny.bert()
    groups = LayerGroups.of(model)
    follower = PlanFollower(Gradual(over=0.5), groups, groups.parameters)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    follower.follow(model, 0.25, 6)
    kept = {n for n, p in model.named_parameters() if p.grad is not None}
    assert kept == follower.plan.trains
    assert kept < set(groups.parameters)


def test_draws_go_on_with_the_seed_that_the_run_began_with():
    model = tiny.bert()
    groups = LayerGroups.of(model)
    policy = LISA(count=1, every=0.1)
    first = PlanFollower(policy, groups, groups.parameters, seed=1)
    other = PlanFollower(policy, groups, groups.parameters, seed=2)
    shares = [step / 10 for step in range(10)]

    def draws(follower):
        return [policy.plan(groups, share, follower.signals).trains for share in shares]

    assert draws(first) != draws(other)
    first.follow(model, 0.0, 0)
    other.begin(json.loads(json.dumps(first.memory())))
    assert draws(first) == draws(other)


def test_waiting_for_a_score_that_no_evaluation_gives_is_refused(tmp_path):
    run = trainer("bert", "gradual-stall", tmp_path, metric_for_best_model="accuracy")
    with pytest.raises(UserError, match="waits for 'accuracy', but an evaluation gives: loss, "):
        run.train()
    two = {"first": tiny.texts(8), "second": tiny.texts(16)}
    run = trainer("bert", "gradual-stall", tmp_path)
    run.eval_dataset = two
    with pytest.raises(UserError, match="waits for 'loss', but an evaluation gives: first_loss"):
        run.train()
    run = trainer("bert", "gradual-stall", tmp_path, metric_for_best_model="second_loss")
    run.eval_dataset = two
    run.train()
    losses = [-e["eval_second_loss"] for e in run.state.log_history if "eval_second_loss" in e]
    assert run.follower.signals.values["best"] == max(losses)


def test_a_recipe_that_waits_for_stalls_evaluates_by_itself(tmp_path):
    """On a validation split, by the metric that selects, also where nothing else asks for it."""
    stall = {"type": "gradual", "when": "stall"}
    run_recipe(Recipe.load(tiny_run.text_recipe(tmp_path, freeze=stall)))
    state = max((tmp_path / "out").rglob("trainer_state.json"), key=lambda p: p.stat().st_mtime)
    memory = json.loads(state.read_text("utf-8"))["stateful_callbacks"]["RunRecord"]
    signals = memory["attributes"]["memory"]["plan"]["signals"]
    assert 0 <= signals["best"] <= 1, "an accuracy"


# ---- LP-FT ----


def test_the_head_is_anchored_where_probing_left_it(whole):
    run, _, folder, _ = whole("bert", "lp-ft")
    assert not (folder / "checkpoint-2" / ANCHORS).exists()
    assert not (folder / "checkpoint-3" / ANCHORS).exists(), "taken when the next phase begins"
    assert (folder / "checkpoint-4" / ANCHORS).is_file()
    probed = load_file(folder / "checkpoint-3" / "model.safetensors")
    anchors = run.starting_point.probed
    assert anchors.keys() == HEAD["bert"]
    assert all(torch.equal(probed[name], value) for name, value in anchors.items())
    theta = dict(run.model.named_parameters())
    known = {**run.starting_point.copies, **anchors}
    pull = sum(0.05 * (theta[n] - a).square().sum().item() for n, a in known.items())
    assert run.penalty_value() == pytest.approx(pull, rel=1e-5)


def test_the_pull_to_the_probed_head_acts_in_the_second_phase_alone(tmp_path):
    """A huge λ holds the head at its anchor; before, the coefficient of new parameters acts."""
    seen = {}

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen[state.global_step] = model.classifier.weight.detach().clone()

    args = tiny.arguments(tmp_path, num_train_epochs=3, learning_rate=0.1, optim="sgd")
    penalty = L2SP(lambda_=4.9, head=0.0)  # 1 - η·2λ = 0.02 for each step
    run = TransferTrainer(
        tiny.bert(),
        args,
        train_dataset=tiny.texts(32),
        penalty=penalty,
        freeze=LPFT(probe=0.5),
        fresh=HEAD["bert"],
        callbacks=[Keep()],
    )
    run.train()
    probing = (seen[6] - seen[5]).norm()
    held = (seen[12] - seen[6]).norm()
    assert probing > 1e-3
    assert held < 0.9 * (seen[6] - seen[1]).norm()
    assert torch.equal(run.starting_point.probed["classifier.weight"], seen[6])


@pytest.mark.parametrize("head", [0.0, 0.3])
def test_the_optimizer_groups_are_the_same_before_and_after_probing(head, tmp_path):
    """Else a checkpoint of the second phase would not fit."""
    found = []
    for probed in ({}, {n: torch.zeros(()) for n in HEAD["bert"]}):
        run = trainer("bert", "lp-ft", tmp_path)
        run.pull.penalties = (L2SP(lambda_=0.1, head=head),)
        run.starting_point.set_probed(probed)
        found.append(run.get_decay_parameter_names(run.model))
    assert found[0] == found[1]
    assert not HEAD["bert"] & set(found[0])


# ---- launching ----


@pytest.mark.parametrize(
    "wrong", [{"ddp_find_unused_parameters": False}, {"ddp_static_graph": True}]
)
def test_ddp_must_expect_unused_parameters(wrong, tmp_path):
    with pytest.raises(UserError, match="training.ddp_find_unused_parameters"):
        trainer("bert", "gradual", tmp_path, **wrong)
    trainer("bert", TrainLast(count=1), tmp_path, **wrong)


def test_reentrant_checkpointing_is_refused_in_several_processes_alone(tmp_path, monkeypatch):
    """DDP itself does not allow it together with unused parameters."""
    changes = {KEY: True, f"{KEY}_kwargs": {"use_reentrant": True}}
    run = trainer("bert", "gradual", tmp_path, **changes)
    monkeypatch.setattr(type(run.args), "world_size", 2)
    with pytest.raises(UserError, match="use_reentrant"):
        expect_unused(run)


def test_ddp_is_told_where_the_plan_changes_and_only_there(tmp_path):
    for policy in POLICIES.values():
        run = trainer("bert", policy, tmp_path)
        assert run.args.ddp_find_unused_parameters is True
        assert run.accelerator.ddp_handler.find_unused_parameters is True
    assert trainer("bert", TrainLast(count=1), tmp_path).args.ddp_find_unused_parameters is None


# ---- gradient checkpointing ----


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["lp-ft", "gradual", "chain-thaw", "last"])
def test_gradient_checkpointing_changes_nothing(name, reentrant, tmp_path):
    policy = POLICIES.get(name, TrainLast(count=1))
    found = []
    for changes in (
        {},
        {KEY: True, f"{KEY}_kwargs": {"use_reentrant": reentrant}},
    ):
        torch.manual_seed(0)
        run = trainer("bert", policy, tmp_path, eval_strategy="no", **changes)
        replayed = count_replays(run.model)
        run.train()
        found.append(tiny.weights(run.model))
        assert bool(replayed["forward"] > replayed["steps"]) == bool(changes)
    assert tiny.distance(*found) <= 1e-6
    last = [n for n in found[0] if "layer.1" in n]
    source = tiny.weights(tiny.bert())
    assert any(not torch.equal(source[n], found[1][n]) for n in last)


def count_replays(model):
    """Counts forward passes of the last block's attention, and of the whole model."""
    counts = {"forward": 0, "steps": 0}

    def count(key):
        def hook(module, *_):
            counts[key] += module.training

        return hook

    model.bert.encoder.layer[1].attention.register_forward_hook(count("forward"))
    model.bert.encoder.layer[1].register_forward_hook(count("steps"))
    return counts
