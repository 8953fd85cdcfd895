"""Mixout: E[out] = θ, the gradient of the formula, and a model that stays what it was."""

import copy

import pytest
import tiny
import torch
from test_resume import StopAt, outcome
from torch import nn

from hf_sft import Mixout, StartingPoint, TrainLast, TransferTrainer
from hf_sft.errors import RecipeError
from hf_sft.penalties.mixout import mix

HEAD = {"classifier.weight", "classifier.bias"}


def mixed(p=0.7, build=None, fresh=()):
    """A model away from its starting point, mixed."""
    model = nn.Linear(4, 3).double() if build is None else build()
    start = StartingPoint.of(model, fresh=fresh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    Mixout(p=p).attach(model, start)
    return model, start


def trainer(folder, model=None, penalty=None, **changes):
    settings = {"train_dataset": tiny.texts(24), "fresh": HEAD}
    settings |= {k: changes.pop(k) for k in ("callbacks", "freeze") if k in changes}
    return TransferTrainer(
        tiny.bert() if model is None else model, tiny.arguments(folder, **changes),
        penalty=Mixout(p=0.5) if penalty is None else penalty, **settings,
    )  # fmt: skip


# ---- the formula ----


def test_every_element_is_one_of_two_values():
    """[(1 − M)·a + M·θ − p·a]/(1 − p): M = 0 gives a, M = 1 gives (θ − p·a)/(1 − p)."""
    theta, a, p = torch.randn(50, 40), torch.randn(50, 40), 0.7
    found = mix(theta, a, p)
    kept, swapped = (theta - p * a) / (1 - p), a
    is_kept, is_swapped = (found - kept).abs() < 1e-5, (found - swapped).abs() < 1e-5
    assert (is_kept | is_swapped).all()
    assert is_kept.float().mean().item() == pytest.approx(1 - p, abs=0.05)
    for row in is_kept:  # drawn per element, not per row or column
        assert 0 < row.float().mean() < 1
    for column in is_kept.T:
        assert 0 < column.float().mean() < 1


@pytest.mark.parametrize("p", [0.1, 0.7, 0.9])
def test_the_expectation_is_theta(p):
    """Monte Carlo, within five standard errors of every element."""
    theta, a, draws = torch.randn(6), torch.randn(6), 20000
    found = mix(theta.expand(draws, 6), a.expand(draws, 6), p)
    error = (theta - a).abs() * (p / (1 - p) / draws) ** 0.5
    assert ((found.mean(0) - theta).abs() < 5 * error).all()


def test_the_gradient_is_that_of_the_formula():
    theta = torch.randn(30, 20, dtype=torch.float64, requires_grad=True)
    a, p, weights = torch.randn(30, 20).double(), 0.7, torch.randn(30, 20).double()
    torch.manual_seed(3)
    found = mix(theta, a, p)
    mask = ((found - a).abs() > 1e-12).double()
    written = ((1 - mask) * a + mask * theta - p * a) / (1 - p)
    assert torch.allclose(found, written)
    ours = torch.autograd.grad((weights * found).sum(), theta)[0]
    theirs = torch.autograd.grad((weights * written).sum(), theta)[0]
    assert torch.allclose(ours, theirs)
    assert torch.allclose(ours, weights * mask / (1 - p))


def test_a_layer_computes_with_the_mix():
    model, start = mixed()
    x = torch.randn(5, 4).double()
    torch.manual_seed(3)
    found = model(x)
    torch.manual_seed(3)
    weight = mix(model.weight, start.copies["weight"], 0.7)
    bias = mix(model.bias, start.copies["bias"], 0.7)
    assert torch.equal(found, nn.functional.linear(x, weight, bias))
    found.sum().backward()
    assert model.weight.grad.any()


# ---- where it acts ----


def test_p_zero_is_no_mixout_bit_for_bit(tmp_path):
    found = []
    for penalty in (Mixout(p=0.0), ()):
        torch.manual_seed(0)
        run = trainer(tmp_path, tiny.bert(dropout=0.1), penalty)
        run.train()
        found.append({**tiny.weights(run.model), "rng": torch.get_rng_state()})
    assert tiny.different(*found) == []


def test_evaluation_is_left_alone():
    model, _ = mixed(build=tiny.bert, fresh=HEAD)
    batch = {k: torch.tensor([r[k] for r in tiny.texts(4)]) for k in ("input_ids", "labels")}
    other = tiny.bert()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(**batch).logits, other.eval()(**batch).logits)
    assert not torch.allclose(model.train()(**batch).logits, other.train()(**batch).logits)


def test_new_and_frozen_layers_are_left_alone(tmp_path):
    """With one layer open, noise enters there only; the head is new."""
    run = trainer(tmp_path, freeze=TrainLast(count=1))
    layers = dict(run.model.named_modules())
    hooked = {name for name, module in layers.items() if module._forward_pre_hooks}
    assert hooked
    assert all(name.startswith("bert.encoder.layer.1.") or "pooler" in name for name in hooked)


def test_a_model_without_such_layers_is_refused():
    model = tiny.bert()
    with pytest.raises(RecipeError, match="mixout acts on linear layers"):
        Mixout().attach(model, StartingPoint.of(model, fresh=dict(model.named_parameters())))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "vit", "convnext"])
def test_it_acts_on_linear_layers_of_any_model(kind):
    """GPT-2's are Conv1D; its output layer is its embedding, and left."""
    model, _ = mixed(build=tiny.KINDS[kind][0])
    hooked = [m for m in model.modules() if m._forward_pre_hooks]
    assert len(hooked) >= 6
    assert not any(isinstance(m, nn.Embedding) for m in hooked)
    assert kind != "gpt2" or model.lm_head not in hooked


# ---- the model stays what it was ----


def test_names_and_what_is_saved_stay(tmp_path):
    run = trainer(tmp_path, save_strategy="epoch", num_train_epochs=1)
    run.train()
    assert list(run.model.state_dict()) == list(tiny.bert().state_dict())
    names = [name for name, _ in run.model.named_parameters()]
    assert names == [name for name, _ in tiny.bert().named_parameters()]
    assert all(type(m) in {type(o) for o in tiny.bert().modules()} for m in run.model.modules())
    loaded = type(run.model).from_pretrained(tmp_path / "checkpoint-3")
    assert tiny.different(tiny.weights(run.model), tiny.weights(loaded)) == []


def test_an_error_in_the_forward_pass_leaves_the_parameters_open():
    model, _ = mixed()
    with pytest.raises(RuntimeError):
        model(torch.randn(5, 7).double())
    assert isinstance(model.weight, nn.Parameter)
    assert "weight" not in vars(model)


def test_a_deep_copy_is_mixed_with_its_own_weights_and_the_same_source():
    model, start = mixed()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.copy_(start.copies["weight"])
        other.bias.copy_(start.copies["bias"])
    x = torch.randn(5, 4).double()
    assert torch.allclose(other(x), other.eval()(x))  # at θ⁰ there is nothing to mix
    assert not torch.allclose(model(x), model.eval()(x))


def test_attaching_again_replaces_what_was_attached():
    model, start = mixed()
    Mixout(p=0.2).attach(model, start)
    assert [hook.p for hook in model._forward_pre_hooks.values()] == [0.2]
    assert len(model._forward_hooks) == 1
    Mixout(p=0.0).attach(model, start)
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_resuming_is_not_stopping(tmp_path):
    whole = trainer(tmp_path / "whole", tiny.bert(dropout=0.2))
    whole.train()
    for step in (1, 4):
        folder = tmp_path / f"cut-{step}"
        trainer(folder, tiny.bert(dropout=0.2), callbacks=[StopAt(step)]).train()
        torch.manual_seed(step)
        resumed = trainer(folder, tiny.bert(dropout=0.2))
        resumed.train(resume_from_checkpoint=True)
        assert tiny.different(outcome(whole)[0], outcome(resumed)[0]) == []


def test_gradient_checkpointing_draws_the_same_masks(tmp_path):
    """The pass that is computed again mixes as the first one did."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        sgd = {"optim": "sgd", "learning_rate": 0.1}
        run = trainer(tmp_path, gradient_checkpointing=recompute, **sgd)
        run.train()
        found.append(tiny.weights(run.model))
    assert tiny.distance(*found) <= 1e-6


def test_a_model_built_anew_is_mixed(tmp_path):
    settings = {"train_dataset": tiny.texts(24), "fresh": HEAD, "penalty": Mixout(p=0.5)}
    run = TransferTrainer(args=tiny.arguments(tmp_path), model_init=lambda: tiny.bert(), **settings)
    run.train()
    hooks = [h for m in run.model.modules() for h in m._forward_pre_hooks.values()]
    assert hooks
    assert all(hook.start is run.starting_point for hook in hooks)
