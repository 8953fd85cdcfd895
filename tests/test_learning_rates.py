"""Learning rates of their own: real rates of optimizer groups, their ratio constant."""

import json

import pytest
import timm
import tiny
import torch
from pydantic import ValidationError
from timm.optim import param_groups_layer_decay
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import Trainer, TrainerCallback

from hf_sft import LayerGroups, LearningRate, TrainLast, TransferTrainer
from hf_sft.errors import RecipeError
from hf_sft.training.rates import keep_ratios_, multipliers

HEAD = {"classifier.weight", "classifier.bias"}
LLRD = [LearningRate(role="head", multiplier=10), LearningRate(decay=0.5)]
SCHEDULES = {
    "linear": {},
    "cosine": {"warmup_steps": 2},
    "constant_with_warmup": {"warmup_steps": 3},
    "polynomial": {"lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-4}},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "reduce_lr_on_plateau": {
        "lr_scheduler_kwargs": {"patience": 0, "min_lr": 1e-7, "threshold": 10.0},
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
}


def trainer(folder, rates=(), trainer_class=TransferTrainer, callbacks=(), **changes):
    """12 steps on BERT; AdamW with decay unless said otherwise."""
    settings = {"num_train_epochs": 3, "weight_decay": 0.01, **changes}
    extra = {"learning_rates": rates, "fresh": HEAD} if trainer_class is TransferTrainer else {}
    return trainer_class(
        tiny.bert(dropout=0.1),
        tiny.arguments(folder, **settings),
        train_dataset=tiny.texts(32),
        eval_dataset=tiny.texts(8),
        callbacks=list(callbacks),
        **extra,
    )


def by_name(run, key="lr"):
    """Parameter -> a setting of its group."""
    names = {id(p): n for n, p in run.model.named_parameters()}
    return {names[id(p)]: g[key] for g in run.optimizer.param_groups for p in g["params"]}


class Rates(TrainerCallback):
    """The rate each parameter is moved with, step by step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        names = {id(p): n for n, p in model.named_parameters()}
        groups = optimizer.param_groups
        self.steps.append({names[id(p)]: g["lr"] for g in groups for p in g["params"]})


# ---- the factors ----


@pytest.mark.parametrize("name", ["test_vit", "resnet10t", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("decay", [0.75, 0.9])
def test_decay_is_timms(name, decay):
    """timm only writes them as ``lr_scale``, which no scheduler of torch or transformers reads."""
    model = timm.create_model(name, num_classes=3)
    groups = param_groups_layer_decay(model, layer_decay=decay)
    names = {id(p): n for n, p in model.named_parameters()}
    expected = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    found = multipliers([LearningRate(decay=decay)], LayerGroups.of(model))
    # ConvNeXt's last norm came from the source: we count it to the last block, timm to the head.
    ours = {
        n: expected.pop(n) * decay for n in ("head.norm.weight", "head.norm.bias") & found.keys()
    }
    assert found == pytest.approx(expected | ours)
    assert len(set(found.values())) > 3


def test_decay_of_bert_is_the_usual_one():
    """The head has η, layer i of n η·ρⁿ⁻ⁱ, the embeddings η·ρⁿ⁺¹ (i from 0; n = 2)."""
    found = multipliers([LearningRate(decay=0.9)], LayerGroups.of(tiny.bert()))
    for name, factor in found.items():
        if "embeddings" in name:
            assert factor == pytest.approx(0.9**3)
        elif "layer." in name:
            assert factor == pytest.approx(0.9 ** (2 - int(name.split(".")[3])))
        elif "classifier" in name:
            assert factor == 1.0
    assert found["bert.pooler.dense.weight"] == pytest.approx(0.9), "with the last layer"


def test_the_first_rule_that_fits_decides():
    rules = [
        LearningRate(name="*.query.*", multiplier=3),
        LearningRate(role="norm", multiplier=5),
        LearningRate(role="bias", depth=1, multiplier=7),
        LearningRate(role="head", multiplier=11),
        LearningRate(depth=(0, 0), decay=0.5),
    ]
    found = multipliers(rules, LayerGroups.of(tiny.bert()))
    layer = "bert.encoder.layer"
    assert found[f"{layer}.1.attention.self.query.bias"] == 3
    assert found[f"{layer}.1.output.LayerNorm.bias"] == 5
    assert found[f"{layer}.1.output.dense.bias"] == 7
    assert found["classifier.bias"] == 11
    assert found[f"{layer}.0.output.dense.bias"] == 0.25
    assert f"{layer}.1.output.dense.weight" not in found
    assert "bert.embeddings.word_embeddings.weight" not in found


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([LearningRate(name="bert.encoder.layers.*", multiplier=2)], "learning_rates.0: .* no par"),
        ([LearningRate(depth=2, multiplier=2)], "learning_rates.0: .* numbered 0 to 1"),
        (
            [LearningRate(decay=0.9), LearningRate(role="head", multiplier=2)],
            "learning_rates.1: .*",
        ),
    ],
)
def test_an_idle_rule_is_an_error(rules, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        trainer(tmp_path, rules).create_optimizer()


@pytest.mark.parametrize(
    "keys",
    [{}, {"multiplier": 2, "decay": 0.5}, {"multiplier": 0}, {"decay": 1.1}, {"rate": 2}],
)
def test_a_rule_says_one_factor(keys):
    with pytest.raises(ValidationError):
        LearningRate(**keys)


# ---- the optimizer's groups ----


def test_groups_are_one_for_each_rate_and_decay(tmp_path):
    """Four rates (stem, two blocks, head), each with and without weight decay; no more."""
    run = trainer(tmp_path, LLRD)
    run.create_optimizer()
    groups = run.optimizer.param_groups
    pairs = [(g["lr"], g["weight_decay"]) for g in groups]
    assert len(pairs) == len(set(pairs)) == 8
    plain = trainer(tmp_path, trainer_class=Trainer)
    plain.create_optimizer()
    assert by_name(run, "weight_decay") == by_name(plain, "weight_decay")
    factors = multipliers(LLRD, run.layer_groups)
    assert by_name(run) == {n: 0.01 * factors[n] for n in by_name(plain)}
    same = trainer(tmp_path, [LearningRate(multiplier=2)])
    same.create_optimizer()
    assert len(same.optimizer.param_groups) == 2


@pytest.mark.parametrize("rates", [(), [LearningRate(multiplier=1.0)], [LearningRate(decay=1.0)]])
def test_without_factors_the_groups_are_the_plain_trainers(rates, tmp_path):
    runs = [trainer(tmp_path, rates), trainer(tmp_path, trainer_class=Trainer)]
    found = []
    for run in runs:
        run.create_optimizer()
        names = {id(p): n for n, p in run.model.named_parameters()}
        found.append([{**g, "params": [names[id(p)] for p in g["params"]]}
                      for g in run.optimizer.param_groups])  # fmt: skip
    assert found[0] == found[1]


# ---- T20: the ratio of rates ----


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_has_the_scheduled_rate_times_the_factor(schedule, tmp_path):
    seen = []
    for rates, kind in ((LLRD, TransferTrainer), ((), Trainer)):
        watch = Rates()
        changes = {"lr_scheduler_type": schedule, **SCHEDULES[schedule]}
        run = trainer(tmp_path, rates, kind, [watch], **changes)
        run.train()
        seen.append(watch.steps)
    factors = multipliers(LLRD, LayerGroups.of(tiny.bert(), fresh=HEAD))
    assert len(seen[0]) == 12
    for step, (ours, plain) in enumerate(zip(*seen, strict=True)):
        if schedule == "reduce_lr_on_plateau":  # when it reduces depends on the loss
            plain = dict.fromkeys(plain, ours["classifier.weight"] / 10)
        assert ours == pytest.approx({n: plain[n] * factors[n] for n in plain}, rel=1e-12, abs=0), (
            step
        )
    rates = {steps["classifier.weight"] for steps in seen[0]}
    assert len(rates) > 3, "the schedule moves"


def test_timms_lr_scale_changes_no_rate(tmp_path):
    """Guards the law above: what timm writes for its own schedulers has no effect elsewhere."""
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = torch.optim.SGD(param_groups_layer_decay(model, layer_decay=0.5), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(3):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3
        optimizer.step()
        scheduler.step()


def test_a_plateau_schedule_keeps_ratios_down_to_its_floor():
    """By itself it keeps a rate whose reduction is below 1e-8, and floors all groups alike."""

    def rates(keep):
        groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in (1e-5, 1e-7)]
        scheduler = ReduceLROnPlateau(torch.optim.SGD(groups), patience=0, min_lr=1e-8)
        for step in range(6):
            if keep and step in (0, 3):  # again after a resumption
                keep_ratios_(scheduler)
            scheduler.step(1.0)
        return [group["lr"] for group in groups_of(scheduler)]

    plain, kept = rates(False), rates(True)
    assert kept == pytest.approx([1e-8, 1e-10])
    assert plain[0] / plain[1] != pytest.approx(100)


def groups_of(scheduler):
    return scheduler.optimizer.param_groups


def test_the_logged_rate_is_the_one_of_the_recipe(tmp_path):
    run = trainer(tmp_path, LLRD[:1])
    run.train()
    logged = [e["learning_rate"] for e in run.state.log_history if "learning_rate" in e]
    assert logged[0] == 0.01


# ---- what the rates do ----


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_a_step_is_longer_by_the_factor(optim, tmp_path):
    moved = []
    for rates in (LLRD, ()):
        torch.manual_seed(0)
        args = {"optim": optim, "max_steps": 1, "weight_decay": 0.0, "max_grad_norm": 0.0}
        run = trainer(tmp_path, rates, learning_rate=1e3 if optim == "sgd" else 1e-3, **args)
        before = {n: p.detach().double().clone() for n, p in run.model.named_parameters()}
        run.train()
        moved.append({n: p.detach().double() - before[n] for n, p in run.model.named_parameters()})
    factors = multipliers(LLRD, LayerGroups.of(tiny.bert(), fresh=HEAD))
    for name, plain in moved[1].items():
        if "key.bias" in name:
            continue  # its gradient is zero but for rounding
        assert plain.norm() > 0, name
        error = (moved[0][name] - factors[name] * plain).norm() / (factors[name] * plain.norm())
        assert error < 2e-3, name  # the weights are of single precision


@pytest.mark.parametrize("schedule", ["cosine", "reduce_lr_on_plateau"])
def test_resuming_is_not_stopping(schedule, tmp_path):
    changes = {"lr_scheduler_type": schedule, **SCHEDULES[schedule]}
    whole = trainer(tmp_path, LLRD, save_strategy="steps", save_steps=1, **changes)
    whole.train()
    for step in (1, 7):
        torch.manual_seed(99)
        resumed = trainer(tmp_path / "resumed", LLRD, **changes)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert tiny.different(tiny.weights(whole.model), tiny.weights(resumed.model)) == []
        assert by_name(resumed) == by_name(whole)
        states = [json.dumps(r.lr_scheduler.state_dict(), default=str) for r in (whole, resumed)]
        assert states[0] == states[1]


def test_rates_go_together_with_a_policy(tmp_path):
    """What is frozen stays; what trains has its own rate."""
    run = TransferTrainer(
        tiny.bert(),
        tiny.arguments(tmp_path),
        train_dataset=tiny.texts(16),
        freeze=TrainLast(count=1),
        learning_rates=LLRD,
        fresh=HEAD,
    )
    run.train()
    assert run.starting_point.changed(run.model, run.frozen) == []
    stepped = {n for n, p in run.model.named_parameters() if p in run.optimizer.state}
    assert stepped == run.ever_trains
