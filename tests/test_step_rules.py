"""SPD and Ball: what they do to a step, and when they do not act."""

import pytest
import tiny
import torch
from test_resume import StopAt, outcome
from torch import nn

from hf_sft import L2SP, SPD, Ball, Mixout, Pull, StartingPoint, TransferTrainer

HEAD = {"classifier.weight", "classifier.bias"}
RULES = {"spd": SPD(), "spd-half": SPD(lambda_=0.5), "ball": Ball(radius=0.01),
         "absolute-ball": Ball(radius=0.02, absolute=True)}  # fmt: skip


SHAPES = pytest.mark.parametrize("shape", [(5,), ()], ids=["vector", "scalar"])


class Vector(nn.Module):
    """Two parameters, a and b; b is new."""

    def __init__(self, shape):
        super().__init__()
        self.a = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(shape, dtype=torch.float64))


def pulled(rule, optimizer=torch.optim.SGD, shape=(5,), **settings):
    """A model one step away from θ⁰, its optimizer, and the rule attached to it."""
    model = Vector(shape)
    start = StartingPoint.of(model, fresh={"b"})
    with torch.no_grad():
        model.a.add_(torch.randn_like(model.a))
        model.b.add_(torch.randn_like(model.b))
    stepper = optimizer(model.parameters(), **{"lr": 0.3, **settings})
    pull = Pull([rule], model, start)
    pull.attach(stepper)
    return model, start.copies["a"], stepper


def step(model, stepper, gradient):
    """One step with this gradient on both; a before and as the optimizer alone would leave it."""
    before = model.a.detach().clone()
    model.a.grad, model.b.grad = gradient.clone(), gradient.clone()
    stepper.step()
    return before


def settings(rule, folder, **changes):
    args = tiny.arguments(folder, **changes)
    return {"args": args, "train_dataset": tiny.texts(24), "penalty": rule, "fresh": HEAD}


# ---- SPD ----


def overshooting(model, anchor):
    """A gradient that points back to θ⁰ so hard that the step lands further away behind it."""
    return 20 * (model.a.detach() - anchor)


@SHAPES
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_spd_by_hand(strength, shape):
    """θ̂ − λ·r·(θ̂ − θ⁰), r = (‖θ̂ − θ⁰‖ − ‖θ − θ⁰‖)/‖θ̂ − θ⁰‖ where ⟨g, θ − θ⁰⟩ > 0."""
    model, anchor, stepper = pulled(SPD(lambda_=strength), shape=shape)
    gradient = overshooting(model, anchor)
    before = step(model, stepper, gradient)
    hat = before - 0.3 * gradient
    r = ((hat - anchor).norm() - (before - anchor).norm()) / (hat - anchor).norm()
    assert r > 0.5
    assert torch.allclose(model.a, hat - strength * r * (hat - anchor), rtol=1e-12)


def test_lambda_one_projects_back_to_the_radius_before():
    model, anchor, stepper = pulled(SPD())
    before = step(model, stepper, overshooting(model, anchor))
    assert (model.a - anchor).norm().item() == pytest.approx((before - anchor).norm().item())
    assert not torch.allclose(model.a, before)


@pytest.mark.parametrize("factor", [-1.0, 0.1], ids=["outward gradient", "nearer than before"])
def test_spd_leaves_other_steps_bit_for_bit(factor):
    """A gradient that leads away (⟨g, d⟩ < 0), and a step that ends nearer to θ⁰."""
    model, anchor, stepper = pulled(SPD())
    gradient = factor * (model.a.detach() - anchor)
    before = step(model, stepper, gradient)
    assert torch.equal(model.a, before.add(gradient, alpha=-0.3))


def test_spd_tests_the_gradient_not_the_update():
    """Momentum leads away, the gradient leads back: decayed. The update alone would say no."""
    model, anchor, stepper = pulled(SPD(), momentum=0.9)
    step(model, stepper, -(model.a.detach() - anchor))
    before = step(model, stepper, 0.5 * (model.a.detach() - anchor))
    hat_moved_out = (stepper.state[model.a]["momentum_buffer"] * (before - anchor)).sum() < 0
    assert hat_moved_out
    assert (model.a - anchor).norm().item() == pytest.approx((before - anchor).norm().item())


def test_new_parameters_are_free():
    model, anchor, stepper = pulled(SPD())
    b = model.b.detach().clone()
    gradient = overshooting(model, anchor)
    step(model, stepper, gradient)
    assert torch.equal(model.b, b.add(gradient, alpha=-0.3))


def test_at_the_source_there_is_nothing_to_divide_by():
    """θ = θ⁰ before the step, and θ̂ = θ⁰ after it."""
    model, anchor, stepper = pulled(SPD())
    with torch.no_grad():
        model.a.copy_(anchor)
    gradient = torch.randn(5, dtype=torch.float64)
    step(model, stepper, gradient)
    assert torch.equal(model.a, anchor.add(gradient, alpha=-0.3))
    with torch.no_grad():
        model.a.copy_(anchor + 1)
    step(model, stepper, torch.full((5,), 1 / 0.3, dtype=torch.float64))
    assert model.a.isfinite().all()
    assert torch.allclose(model.a, anchor, atol=1e-12)


def test_a_step_of_length_zero_is_not_decayed():
    """Warm-up begins with a learning rate of 0."""
    model, anchor, stepper = pulled(SPD(), optimizer=torch.optim.AdamW, weight_decay=0.0)
    for group in stepper.param_groups:
        group["lr"] = 0.0
    before = step(model, stepper, model.a.detach() - anchor)
    assert torch.equal(model.a, before)


# ---- Ball ----


@SHAPES
@pytest.mark.parametrize("absolute", [True, False])
def test_ball_is_the_projection(absolute, shape):
    """Outside: onto the sphere along d, and twice is once; inside: bit for bit as it was."""
    model, anchor, stepper = pulled(Ball(radius=0.2, absolute=absolute), shape=shape)
    limit = 0.2 if absolute else 0.2 * anchor.norm()
    gradient = torch.randn_like(anchor)
    before = step(model, stepper, gradient)
    hat = before - 0.3 * gradient - anchor
    assert hat.norm() > limit
    assert torch.allclose(model.a - anchor, hat * limit / hat.norm(), rtol=1e-12)
    once = model.a.detach().clone()
    step(model, stepper, torch.zeros_like(anchor))
    assert torch.allclose(model.a, once, rtol=0, atol=1e-15)
    inward = 0.1 * (once - anchor)
    step(model, stepper, inward)
    assert torch.allclose(model.a, once.add(inward, alpha=-0.3), rtol=0, atol=1e-15)
    inside = model.a.detach().clone()
    assert (inside - anchor).norm() < 0.98 * limit
    step(model, stepper, torch.zeros_like(anchor))
    assert torch.equal(model.a, inside)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_ball_is_never_left(optim, tmp_path):
    trainer = TransferTrainer(
        tiny.bert(), **settings(Ball(radius=0.01), tmp_path, optim=optim, learning_rate=0.5)
    )
    trainer.train()
    touched = 0
    for name, anchor in trainer.starting_point.copies.items():
        length = (trainer.model.get_parameter(name) - anchor).norm()
        assert length <= 0.01 * anchor.norm() * (1 + 1e-5), name
        touched += length > 0.0099 * anchor.norm()
    assert touched > 1
    head = trainer.model.classifier.weight - tiny.bert().classifier.weight
    assert head.norm() > 0.05 * trainer.model.classifier.weight.norm()


# ---- both ----


@pytest.mark.parametrize("case", RULES)
def test_it_acts(case, tmp_path):
    found = []
    for rule in (RULES[case], ()):
        torch.manual_seed(0)
        trainer = TransferTrainer(tiny.bert(), **settings(rule, tmp_path, num_train_epochs=4))
        trainer.train()
        found.append(tiny.weights(trainer.model))
    assert tiny.distance(*found) > 1e-4


@pytest.mark.parametrize("case", RULES)
def test_resuming_is_not_stopping(case, tmp_path):
    def build(folder, **extra):
        return TransferTrainer(tiny.bert(dropout=0.2), **settings(RULES[case], folder), **extra)

    whole = build(tmp_path / "whole")
    whole.train()
    for stop in (1, 4):
        folder = tmp_path / f"cut-{stop}"
        build(folder, callbacks=[StopAt(stop)]).train()
        torch.manual_seed(stop)
        resumed = build(folder)
        resumed.train(resume_from_checkpoint=True)
        assert tiny.different(outcome(whole)[0], outcome(resumed)[0]) == []


@pytest.mark.parametrize("case", RULES)
def test_a_step_that_the_scaler_skips_is_followed_by_no_rule(case, tmp_path):
    """Infinite gradients: the weights, far outside, stay bit for bit."""
    trainer = TransferTrainer(tiny.bert(), **settings(RULES[case], tmp_path))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    trainer.create_optimizer()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = tiny.weights(trainer.model)
    for value in (float("inf"), 1.0):
        for name, parameter in trainer.model.named_parameters():
            anchor = trainer.starting_point.copies.get(name)
            toward = torch.ones_like(parameter) if anchor is None else parameter.detach() - anchor
            parameter.grad = toward * value
        scaler.scale(torch.ones(()))
        scaler.step(trainer.optimizer)
        scaler.update()
        changed = tiny.different(before, tiny.weights(trainer.model))
        assert bool(changed) is (value == 1.0)


def test_rows_that_were_added_are_free():
    """Of an embedding that grew, the old rows are held as one tensor, the new ones not at all."""
    model = nn.Embedding(6, 3)
    start = StartingPoint.of(model, fresh=(), rows={"weight": 4})
    old = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Pull([Ball(radius=0.1), SPD()], model, start).attach(optimizer)
    model.weight.grad = torch.ones(6, 3)
    optimizer.step()
    moved = model.weight.detach() - old
    assert torch.equal(moved[4:], old[4:].sub(1) - old[4:])
    assert moved[:4].norm().item() == pytest.approx(0.1 * old[:4].norm().item(), rel=1e-5)


def test_rules_come_after_proximal_steps():
    """The ball has the last word."""
    model, anchor, _ = pulled(Ball(radius=0.2))
    start = StartingPoint({"a": anchor}, frozenset({"b"}), {"a": ""})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    far = L2SP(lambda_=1e-3, apply="proximal")
    Pull([Ball(radius=0.2), far], model, start).attach(optimizer)
    step(model, optimizer, torch.randn(5, dtype=torch.float64))
    assert (model.a - anchor).norm().item() == pytest.approx(0.2 * anchor.norm().item())


def test_gradients_that_the_optimizer_does_not_get_are_no_step():
    """A parameter without a gradient is not moved, and SPD does not decay it."""
    model, anchor, stepper = pulled(SPD())
    before = model.a.detach().clone()
    model.b.grad = torch.ones_like(model.b)
    stepper.step()
    assert torch.equal(model.a, before)
    assert Mixout(p=0.5).before_step({}, None, 0.0) is None
