"""Frozen means frozen: parameters, buffers, dropout, optimizer state, gradient norm."""

import pytest
import tiny
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer

from hf_sft import L2SP, LayerGroups, LinearProbe, Signals, TrainFirst, TrainLast, TrainOnly
from hf_sft import TransferTrainer as Ours
from hf_sft.errors import RecipeError
from hf_sft.freezing import TrainAll

POLICIES = [
    LinearProbe(),
    TrainLast(count=0),
    TrainLast(count=1),
    TrainFirst(count=1),
    TrainOnly(patterns=["*bias", "*1*.weight"]),
    TrainLast(count=1, norm_statistics="train"),
    TrainLast(count=1, norm_statistics="frozen"),
    TrainLast(count=1, norm_affine="train"),
    TrainLast(count=1, norm_affine="frozen"),
    TrainLast(count=1, norm_statistics="train", norm_affine="frozen"),
    TrainAll(norm_statistics="frozen", norm_affine="frozen"),
]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def name_of(policy):
    return "-".join(map(str, policy.model_dump(exclude_defaults=True).values())) or policy.type


def train(kind, policy, folder, watch=None, trainer_class=Ours, **changes):
    build, rows = tiny.KINDS[kind]
    settings = {"num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 1, **changes}
    extra = {"freeze": policy, "penalty": L2SP(lambda_=0.01), "fresh": ()}
    trainer = trainer_class(
        build(dropout=0.5),
        tiny.arguments(folder, **settings),
        train_dataset=rows(16),
        eval_dataset=rows(8),
        **(extra if trainer_class is Ours else {}),
    )
    if watch is not None:
        for name, module in trainer.model.named_modules():
            module.register_forward_pre_hook(lambda m, _, name=name: watch(name, m))
    trainer.train()
    return trainer


def expected(policy, model):
    """(parameters that train, norm modules in training mode), by the policy's description."""
    groups = LayerGroups.of(model)
    opened = set(groups.head.parameters)
    if isinstance(policy, TrainAll):
        opened |= set(groups.parameters)
    elif isinstance(policy, TrainLast) and policy.count:
        for block in groups.blocks[-policy.count :]:
            opened |= set(block.parameters)
    elif isinstance(policy, TrainFirst):
        for group in [groups.stem, *groups.blocks[: policy.count]]:
            opened |= set(group.parameters)
    elif isinstance(policy, TrainOnly):
        opened |= {n for n in groups.parameters if n.endswith("bias")}
        opened |= {n for n in groups.parameters if n.endswith(".weight") and "1" in n}
    norms = {n for n, m in model.named_modules() if isinstance(m, _BatchNorm | nn.LayerNorm)}
    affine = {n for n in groups.parameters if n.rpartition(".")[0] in norms}
    follow = {n for n in norms if {f"{n}.weight", f"{n}.bias"} & opened}
    trains = {"follow": opened, "train": opened | affine, "frozen": opened - affine}
    moving = {"follow": follow, "train": norms, "frozen": set()}
    return trains[policy.norm_affine], moving[policy.norm_statistics]


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_frozen_is_the_source_bit_for_bit(kind, policy, tmp_path):
    source = tiny.weights(tiny.KINDS[kind][0]())
    trainer = train(kind, policy, tmp_path)
    trains, moving = expected(policy, trainer.model)
    parameters = set(dict(trainer.model.named_parameters()))
    batch_norms = {n for n, m in trainer.model.named_modules() if isinstance(m, _BatchNorm)}
    statistics = {f"{norm}.{key}" for norm in moving & batch_norms for key in STATISTICS}

    changed = set(tiny.different(source, tiny.weights(trainer.model)))
    assert changed & parameters <= trains
    assert changed - parameters == statistics
    idle = trains - changed
    assert all(not name.endswith("weight") or "norm" in name for name in idle), idle

    # The report's list agrees, and so do the optimizer's state and fixed groups.
    frozen = set(trainer.frozen)
    assert frozen & parameters == parameters - trains
    assert not frozen & statistics
    assert trainer.starting_point.changed(trainer.model, frozen) == []
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    grouped = [names[id(p)] for g in trainer.optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(parameters)
    assert {names[id(p)] for p in trainer.optimizer.state} == trains
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trains


def test_the_plain_trainer_moves_frozen_batch_statistics(tmp_path):
    """Guards the test above: requires_grad = False alone freezes no batch statistics."""

    class Frozen(Trainer):
        def train(self, *args, **kwargs):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("fc" in name)
            return super().train(*args, **kwargs)

    source = tiny.weights(tiny.resnet())
    trainer = train("resnet", None, tmp_path, trainer_class=Frozen)
    changed = set(tiny.different(source, tiny.weights(trainer.model)))
    assert {n for n in source if n.endswith(STATISTICS)} <= changed


@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_frozen_modules_run_in_eval_mode_in_every_step(kind, tmp_path):
    """Dropout of a frozen block is off, that of a trained one on, also after each evaluation."""
    modes = {}

    def watch(name, module):
        if torch.is_grad_enabled():  # neither the loss probe nor an evaluation
            modes.setdefault(name, set()).add(module.training)

    trainer = train(kind, TrainLast(count=1), tmp_path, watch)
    last, head = trainer.layer_groups.blocks[-1], trainer.layer_groups.head
    trained = {n.rpartition(".")[0] for n in (*last.parameters, *head.parameters)}
    frozen = {n.rpartition(".")[0] for n in trainer.layer_groups.parameters} - trained
    assert all(modes[name] == {True} for name in trained if name in modes)
    assert all(modes[name] == {False} for name in frozen if name in modes)
    dropouts = {n for n, m in trainer.model.named_modules() if isinstance(m, nn.Dropout)}
    if kind == "bert":
        on = {name for name in dropouts if modes.get(name) == {True}}
        assert {"dropout", "bert.encoder.layer.1.output.dropout"} <= on
        assert not any("layer.0" in name or "embeddings" in name for name in on)


def test_a_frozen_block_gives_the_same_features_in_every_step(tmp_path):
    """With dropout ½ everywhere, what enters the first trained block depends on the input only."""
    seen = []

    def keep(module, inputs):
        if torch.is_grad_enabled():
            seen.append(inputs[0].detach().clone())

    args = tiny.arguments(
        tmp_path, num_train_epochs=2, train_sampling_strategy="sequential", max_grad_norm=0
    )
    model, rows = tiny.bert(dropout=0.5), tiny.texts(8)
    model.bert.encoder.layer[1].register_forward_pre_hook(keep)
    Ours(model, args, train_dataset=rows, freeze=TrainLast(count=1), fresh=()).train()
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_a_frozen_parameter_is_outside_the_gradient_norm(tmp_path):
    model, rows = tiny.convnext(), tiny.images(8)
    args = tiny.arguments(tmp_path, max_steps=1)
    trainer = Ours(model, args, train_dataset=rows, freeze=LinearProbe(), fresh=())
    model.requires_grad_(True)
    model(**trainer.data_collator(rows))["loss"].backward()
    everything = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    head = torch.stack([p.grad.norm() for n, p in model.named_parameters() if "head.fc" in n])
    model.zero_grad()
    trainer.train()
    logged = next(e["grad_norm"] for e in trainer.state.log_history if "grad_norm" in e)
    assert logged == pytest.approx(head.norm().item(), rel=1e-4)
    assert everything > 1.01 * head.norm()


def test_the_norm_switches_act_on_what_they_name(tmp_path):
    """Statistics and affine parameters of normalisation, each in frozen and in trained layers."""
    model = tiny.resnet()
    groups = LayerGroups.of(model)
    inside = {n for n in groups.norm_parameters if n in groups.blocks[-1].parameters}
    outside = groups.norm_parameters - inside
    assert inside
    assert outside

    def plan(**switches):
        return TrainLast(count=1, **switches).plan(groups, 0.0, Signals())

    assert not outside & plan().trains
    assert inside <= plan().trains
    assert outside <= plan(norm_affine="train").trains
    assert not inside & plan(norm_affine="frozen").trains

    def running(**switches):
        still = {id(m) for m in plan(**switches).still(model, groups)}
        return {
            n.rpartition(".")[0] in {k.rpartition(".")[0] for k in inside}
            for n, m in model.named_parameters()
            if n in groups.norm_parameters
            and id(model.get_submodule(n.rpartition(".")[0])) not in still
        }

    assert running() == {True}
    assert running(norm_statistics="train") == {True, False}
    assert running(norm_statistics="frozen") == set()
    assert running(norm_affine="train") == {True}, "affine parameters do not open statistics"
    assert running(norm_affine="frozen") == {True}


def test_what_the_caller_froze_stays_frozen(tmp_path):
    model = tiny.bert()
    mine = "bert.encoder.layer.1.output.dense.weight"
    model.get_parameter(mine).requires_grad_(False)
    source = model.get_parameter(mine).detach().clone()
    args = tiny.arguments(tmp_path)
    trainer = Ours(model, args, train_dataset=tiny.texts(8), freeze=TrainLast(count=1), fresh=())
    trainer.train()
    assert torch.equal(model.get_parameter(mine), source)
    assert mine in trainer.frozen
    assert mine not in trainer.starting_point.copies


def test_what_is_fresh_always_trains(tmp_path):
    """A new part below the head would stay at its random values."""
    fresh = {"bert.pooler.dense.weight", "classifier.weight", "classifier.bias"}
    args = tiny.arguments(tmp_path)
    trainer = Ours(
        tiny.bert(), args, train_dataset=tiny.texts(8), freeze=LinearProbe(), fresh=fresh
    )
    source = tiny.weights(trainer.model)
    trainer.train()
    assert set(tiny.different(source, tiny.weights(trainer.model))) == fresh


def test_a_pattern_that_matches_nothing_is_an_error(tmp_path):
    policy = TrainOnly(patterns=["*.query.*", "bert.encoder.layers.*"])
    message = "'bert.encoder.layers.\\*' matches no parameter"
    with pytest.raises(RecipeError, match=message):
        policy.plan(LayerGroups.of(tiny.bert()), 0.0, Signals())
    args = tiny.arguments(tmp_path)
    with pytest.raises(RecipeError, match=message):
        Ours(tiny.bert(), args, train_dataset=tiny.texts(8), freeze=policy, fresh=())


@pytest.mark.parametrize("policy", [TrainLast(count=3), TrainFirst(count=3)], ids=name_of)
def test_more_blocks_than_there_are_is_an_error(policy):
    with pytest.raises(RecipeError, match="Choices: 0 to 2"):
        policy.plan(LayerGroups.of(tiny.bert()), 0.0, Signals())


@pytest.mark.parametrize("policy", POLICIES, ids=name_of)
def test_plans_are_pure(policy):
    model = tiny.bert()
    before, flags = tiny.weights(model), [p.requires_grad for p in model.parameters()]
    plans = [policy.plan(LayerGroups.of(model), 0.25, Signals()) for _ in range(2)]
    assert plans[0] == plans[1]
    assert tiny.different(before, tiny.weights(model)) == []
    assert [p.requires_grad for p in model.parameters()] == flags
    assert plans[0].trains == expected(policy, model)[0]


def test_count_zero_is_linear_probing():
    groups = LayerGroups.of(tiny.bert())
    plans = [p.plan(groups, 0.0, Signals()) for p in (TrainLast(count=0), LinearProbe())]
    assert plans[0] == plans[1]
