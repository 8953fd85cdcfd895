"""Normalisation layers: statistics, affine parameters and mode are decided each by itself."""

import itertools

import pytest
import timm
import tiny
import torch
from pydantic import ValidationError
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hf_sft import LayerGroups, Signals, TrainLast, TransferTrainer
from hf_sft.freezing import TrainAll

SWITCHES = [
    {"norm_statistics": statistics, "norm_affine": affine, "norm_mode": mode}
    for statistics, affine, mode in itertools.product(
        ("follow", "train", "frozen"), ("follow", "train", "frozen"), ("follow", "batch", "running")
    )
    if (statistics, mode) != ("train", "running")
]
MODELS = {  # BatchNorm2d; BatchNormAct2d
    "resnet10t": lambda: timm.create_model("resnet10t", num_classes=3),
    "test_efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=3),
}


def label(switches):
    return "-".join(switches.values())


def moves(switches, opened):
    """Whether the running statistics of a layer move."""
    if switches["norm_mode"] == "running":
        return False
    return {"follow": opened, "train": True, "frozen": False}[switches["norm_statistics"]]


def by_batch(switches, opened):
    """Whether it normalises by the batch."""
    return {"follow": moves(switches, opened), "batch": True, "running": False}[
        switches["norm_mode"]
    ]


def affine_trains(switches, opened):
    return {"follow": opened, "train": True, "frozen": False}[switches["norm_affine"]]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A model whose running statistics are not those of any batch."""
    torch.manual_seed(0)
    built = MODELS[request.param]()
    layers = [m for m in built.modules() if isinstance(m, _BatchNorm)]
    assert any(isinstance(m, BatchNormAct2d) for m in layers) == (request.param != "resnet10t")
    with torch.no_grad():
        for layer in layers:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_()
    return built


def pass_through(model):
    """name -> (normalised by the batch, buffers moved) of every batch norm, in one pass."""
    found, handles = {}, []
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    before = {n: m.running_mean.clone() for n, m in norms.items()}
    count = {n: m.num_batches_tracked.item() for n, m in norms.items()}

    def check(name, then):
        def hook(layer, inputs, output):
            after = getattr(layer, "act", nn.Identity())
            args = (inputs[0], layer.weight, layer.bias)
            batch = functional.batch_norm(args[0], None, None, *args[1:], True, eps=layer.eps)
            running = functional.batch_norm(
                args[0], *then, *args[1:], training=False, eps=layer.eps
            )
            same = [torch.allclose(after(x), output, atol=1e-4) for x in (batch, running)]
            assert sum(same) == 1, name
            found[name] = same[0]

        return hook

    for name, layer in norms.items():
        then = (layer.running_mean.clone(), layer.running_var.clone())
        handles.append(layer.register_forward_hook(check(name, then)))
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    for handle in handles:
        handle.remove()
    moved = {n: not torch.equal(before[n], m.running_mean) for n, m in norms.items()}
    counted = {n: m.num_batches_tracked.item() != count[n] for n, m in norms.items()}
    assert moved == counted
    return {n: (found[n], moved[n]) for n in norms}


@pytest.mark.parametrize("switches", SWITCHES, ids=label)
def test_the_truth_table(switches, model):
    groups = LayerGroups.of(model)
    policy = TrainLast(count=1, **switches)
    plan = policy.plan(groups, 0.0, Signals())
    last = set(groups.blocks[-1].parameters) | set(groups.head.parameters)
    model.train()
    plan.apply_(model, groups)
    found = pass_through(model)
    opened = {name: f"{name}.weight" in last for name in found}
    assert set(opened.values()) == {True, False}
    for name, is_open in opened.items():
        assert found[name] == (by_batch(switches, is_open), moves(switches, is_open)), name
        for parameter in model.get_submodule(name).parameters():
            assert parameter.requires_grad == affine_trains(switches, is_open), name
    moving = {n.rpartition(".")[0] for n in groups.norm_parameters} & plan.moving(model, groups)
    assert moving == {n for n, is_open in opened.items() if moves(switches, is_open)}
    others = {n for n in groups.parameters if n not in groups.norm_parameters}
    assert others & plan.trains == others & last, "no switch touches another layer"
    model.eval()
    assert set(pass_through(model).values()) == {(False, False)}, "running in evaluation, always"


@pytest.mark.parametrize(
    "switches", [s for s in SWITCHES if s["norm_affine"] == "follow"], ids=label
)
def test_the_truth_table_holds_in_a_training(switches, tmp_path):
    """With evaluations in between, which switch modes; and the audit agrees."""
    source = tiny.weights(tiny.resnet())
    trainer = TransferTrainer(
        tiny.resnet(),
        tiny.arguments(tmp_path, eval_strategy="steps", eval_steps=1),
        train_dataset=tiny.images(16),
        eval_dataset=tiny.images(8),
        freeze=TrainLast(count=1, **switches),
        fresh=(),
    )
    trainer.train()
    last = set(trainer.layer_groups.blocks[-1].parameters)
    changed = set(tiny.different(source, tiny.weights(trainer.model)))
    for name, module in trainer.model.named_modules():
        if isinstance(module, _BatchNorm):
            moved = {f"{name}.{k}" in changed for k in ("running_mean", "running_var")}
            assert moved == {moves(switches, f"{name}.weight" in last)}, name
            assert (f"{name}.running_mean" in trainer.frozen) == (moved == {False})
    assert trainer.starting_point.changed(trainer.model, trainer.frozen) == []


@pytest.mark.parametrize("switches", SWITCHES, ids=label)
def test_layer_norm_has_nothing_but_affine_parameters(switches):
    """Statistics and mode change neither its output nor what trains."""
    model = tiny.bert().train()
    groups = LayerGroups.of(model)
    inputs = {"input_ids": torch.tensor([row["input_ids"] for row in tiny.texts(4)])}
    expected = model(**inputs).logits
    plan = TrainLast(count=1, **switches).plan(groups, 0.0, Signals())
    plan.apply_(model, groups)
    assert torch.equal(model(**inputs).logits, expected)
    last = set(groups.blocks[-1].parameters) | set(groups.head.parameters)
    for name in groups.norm_parameters:
        assert (name in plan.trains) == affine_trains(switches, name in last)


def test_a_plan_undoes_what_the_one_before_set(model):
    """Tracking that one plan has switched off is on again under the next."""
    groups = LayerGroups.of(model)
    for policy in (TrainLast(count=0, norm_mode="batch"), TrainAll()):
        model.train()
        policy.plan(groups, 0.0, Signals()).apply_(model, groups)
        found = set(pass_through(model).values())
        assert found == ({(True, True)} if isinstance(policy, TrainAll) else {(True, False)})


def test_moving_statistics_by_which_nothing_is_normalised_are_refused():
    with pytest.raises(ValidationError, match="leave one of the two out"):
        TrainLast(count=1, norm_statistics="train", norm_mode="running")
