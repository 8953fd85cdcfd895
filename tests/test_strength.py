"""λ, α, half-life and radius: one strength in four units, by simulated decay and in trainings."""

import math

import pytest
import tiny
import torch
from torch import nn

from hf_sft import L1SP, L2SP, FisherSP, GroupLassoSP, Pull, RecAdam, StartingPoint, TransferTrainer
from hf_sft.errors import RecipeError, UserError
from hf_sft.penalties.strength import Optimization, from_half_life, from_radius
from hf_sft.training.optimizer_setup import optimization

HEAD = {"classifier.weight", "classifier.bias"}
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


def decay(prior, optimizer_class, steps, **settings):
    """‖θ − θ⁰‖ over the distance at the beginning, after each step at zero task gradient."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    start = StartingPoint.of(model, fresh=())
    model.theta.data.copy_(torch.linspace(-2, 3, 5))
    before = model.theta.detach().norm().item()
    optimizer = optimizer_class(model.parameters(), **settings)
    pull = Pull([prior], model, start)
    pull.attach(optimizer)
    found = []
    for _ in range(steps):
        model.theta.grad = torch.zeros_like(model.theta)
        pull.add_gradient_()
        optimizer.step()
        found.append(model.theta.detach().norm().item() / before)
    return found


# ---- units ----


def test_alpha_is_twice_lambda():
    found = Optimization(0.1, 10)
    assert L2SP(alpha=0.3).strength == L2SP(lambda_=0.15).strength
    assert L2SP(alpha=0.3).resolved(found).lambda_ == 0.15
    assert not L2SP(alpha=0.3).unresolved
    assert L2SP().strength == 0.01
    assert L2SP(alpha=0.0).strength == 0.0  # given, so that the default is not taken


@pytest.mark.parametrize("units", [{"lambda": 1, "alpha": 1}, {"half_life": 0.1, "radius": 1},
                                   {"lambda_": 1, "radius": 1}])  # fmt: skip
def test_one_strength_is_wanted(units):
    with pytest.raises(ValueError, match="one strength is wanted"):
        L2SP(**units)


@pytest.mark.parametrize("prior", [L1SP, GroupLassoSP])
@pytest.mark.parametrize("unit", ["alpha", "half_life", "radius"])
def test_units_of_squares_are_not_those_of_lengths(prior, unit):
    """The paper's α of L1-SP is λ itself, and a distance that shrinks by ηλ has no half-life."""
    with pytest.raises(ValueError, match=f"{unit} is a unit of squared distances; give lambda"):
        prior(**{unit: 0.1})


def test_a_half_life_without_its_optimizer_is_told():
    model = nn.Linear(2, 2)
    start = StartingPoint.of(model, fresh=())
    with pytest.raises(RecipeError, match=r"penalty.resolved\(Optimization"):
        L2SP(half_life=0.5).value(dict(model.named_parameters()), start)
    for unit in ({"half_life": 0.5}, {"radius": 0.5}):
        prior = L2SP(**unit, apply="proximal")
        assert prior.unresolved
        assert not prior.resolved(Optimization(0.1, 10)).unresolved


# ---- half-lives ----


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 1.0, 3.0])
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [(SGD, {}), (SGD, {"momentum": 0.9}), (ADAM, {}), (ADAMW, {"weight_decay": 0.0})],
)
def test_a_proximal_half_life_is_exact(share, optimizer, settings):
    """‖d‖ is ½ after share·steps, ¼ after twice that, whatever the optimizer."""
    steps, rate = 200, 0.01
    prior = L2SP(half_life=share, apply="proximal").resolved(Optimization(rate, steps))
    half = round(share * steps)
    found = decay(prior, optimizer, 2 * half, lr=rate, **settings)
    assert found[half - 1] == pytest.approx(0.5, rel=1e-9)
    assert found[2 * half - 1] == pytest.approx(0.25, rel=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_the_gradient_form_is_exact_under_plain_sgd(share):
    steps, rate = 200, 0.05
    found = Optimization(rate, steps, adaptive=False)
    prior = L2SP(half_life=share).resolved(found)
    half = round(share * steps)
    assert decay(prior, SGD, half, lr=rate)[-1] == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.5, False), (0.9, False), (0.9, True)])
def test_the_gradient_form_with_momentum_is_near(momentum, nesterov):
    """Within 1/(1 − μ) steps; the longer the half-life, the nearer."""
    steps, rate, errors = 1000, 0.05, []
    for share in (0.1, 1.0):
        found = Optimization(rate, steps, momentum, adaptive=False)
        prior = L2SP(half_life=share).resolved(found)
        half = round(share * steps)
        left = decay(prior, SGD, 2 * half, lr=rate, momentum=momentum, nesterov=nesterov)
        reached = next(i for i, length in enumerate(left, 1) if length <= 0.5)
        assert abs(reached - half) <= 1 / (1 - momentum) + 1
        errors.append(abs(left[half - 1] - 0.5))
    assert errors[1] < errors[0] < 0.05


def test_without_the_momentum_in_the_formula_it_would_not_be():
    """Guards the test above: at μ = 0.9 the pull is ten times as strong."""
    wrong = L2SP(half_life=0.1).resolved(Optimization(0.05, 1000, 0.0, adaptive=False))
    assert decay(wrong, SGD, 100, lr=0.05, momentum=0.9)[-1] < 0.1


def test_the_gradient_form_under_adam_has_none():
    """Its steps do not shrink with λ: a hundred times the pull, the same way."""
    ways = [decay(L2SP(lambda_=strength), ADAM, 20, lr=0.01) for strength in (0.01, 1.0)]
    assert ways[0] == pytest.approx(ways[1], rel=1e-3)
    with pytest.raises(RecipeError, match=r"half_life.*apply: proximal.*optim: sgd.*lambda"):
        from_half_life(0.5, "gradient", Optimization(0.1, 10))


def test_fisher_has_the_half_life_where_f_is_one():
    model = nn.Module()
    model.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    start = StartingPoint.of(model, fresh=())
    start.fisher = {"theta": torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)}
    model.theta.data.fill_(1.0)
    prior = FisherSP(half_life=0.1, apply="proximal").resolved(Optimization(0.01, 100))
    model.theta.grad = torch.zeros(3, dtype=torch.float64)
    for _ in range(10):
        prior.proximal_({"theta": model.theta}, start, {"theta": 0.01})
    assert model.theta[0] == 1.0
    assert model.theta[1].item() == pytest.approx(0.5, rel=1e-12)
    assert model.theta[2] < 0.5**3


def test_recadam_has_the_half_life_while_nothing_is_annealed():
    prior = RecAdam(half_life=0.1, k=1e3, t0=1.0).resolved(Optimization(0.01, 100))
    assert decay(prior, ADAM, 10, lr=0.01)[-1] == pytest.approx(0.5, rel=1e-9)


# ---- radius ----


@pytest.mark.parametrize("radius", [0.01, 0.5])
def test_a_radius_bounds_the_distance_under_adam(radius):
    """A gradient that keeps its sign: |d| → r, from below."""
    prior = L2SP(radius=radius, apply="proximal").resolved(Optimization(0.001, 1))
    assert prior.lambda_ == pytest.approx(1 / (2 * radius))
    model = nn.Module()
    model.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    pull = Pull([prior], model, StartingPoint.of(model, fresh=()))
    optimizer = ADAM(model.parameters(), lr=0.01)
    pull.attach(optimizer)
    for _ in range(1000):
        model.theta.grad = torch.tensor([1.0, -100.0], dtype=torch.float64)
        optimizer.step()
        assert (model.theta.abs() <= radius * (1 + 1e-9)).all()
    assert (model.theta.abs() > 0.99 * radius).all()


@pytest.mark.parametrize("found", [{"how": "gradient"}, {"adaptive": False}])
def test_a_radius_elsewhere_is_told(found):
    how = found.pop("how", "proximal")
    with pytest.raises(RecipeError, match="radius.*apply: proximal.*type: ball"):
        from_radius(0.5, how, Optimization(0.1, 10, **found))


# ---- trainings ----


def trainer(folder, penalty, rows=24, freeze=None, optimizers=(None, None), **changes):
    changes = {"lr_scheduler_type": "constant", "max_grad_norm": 0, **changes}
    return TransferTrainer(
        tiny.bert(),
        tiny.arguments(folder, **changes),
        train_dataset=tiny.texts(rows),
        penalty=penalty,
        freeze=freeze,
        fresh=HEAD,
        optimizers=optimizers,
    )


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 6),
        ({"num_train_epochs": 5}, 15),
        ({"num_train_epochs": 0.5}, 2),
        ({"max_steps": 7}, 7),
        ({"gradient_accumulation_steps": 2}, 4),
        ({"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}, 8),
        ({"per_device_train_batch_size": 5}, 10),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 5}, 8),
    ],
)
def test_the_steps_are_those_of_the_training(changes, steps, tmp_path):
    """Over epochs, max_steps, accumulation: what resolves a half-life is what is then done."""
    half = L2SP(half_life=0.5, apply="proximal")
    run = trainer(tmp_path, half, **changes)
    (prior,) = run.penalties
    assert prior.lambda_ == pytest.approx((2 ** (2 / steps) - 1) / (2 * run.args.learning_rate))
    run.train()
    assert run.state.global_step == steps


class Still(TransferTrainer):
    """A task without a gradient, so that the pull alone moves what has moved."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss = 0.0 * sum(p.sum() for p in model.parameters())
        return (loss, {}) if return_outputs else loss


@pytest.mark.parametrize(
    ("apply", "optim"), [("proximal", "adamw_torch"), ("proximal", "sgd"), ("gradient", "sgd")]
)
def test_the_distance_halves_in_a_training(apply, optim, tmp_path):
    """half_life: 0.25 leaves 1/16 of every distance at the end."""
    args = tiny.arguments(
        tmp_path, optim=optim, lr_scheduler_type="constant", max_grad_norm=0, max_steps=40
    )
    penalty = L2SP(half_life=0.25, apply=apply)
    run = Still(tiny.bert(), args, train_dataset=tiny.texts(8), penalty=penalty, fresh=HEAD)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(1.0)
    run.train()
    for name, source in run.starting_point.copies.items():
        left = dict(run.model.named_parameters())[name].detach() - source
        assert torch.allclose(left, torch.tensor(1 / 16), atol=2e-6), name


@pytest.mark.parametrize("unit", [{"half_life": 0.3}, {"radius": 0.05}, {"alpha": 1.4}])
def test_every_unit_is_the_lambda_it_comes_to(unit, tmp_path):
    """The same training bit for bit, random state included."""
    found = []
    first = trainer(tmp_path, L2SP(**unit, apply="proximal"))
    for penalty in (L2SP(**unit, apply="proximal"),
                    L2SP(lambda_=first.penalties[0].strength, apply="proximal")):  # fmt: skip
        torch.manual_seed(2)
        run = trainer(tmp_path, penalty)
        run.train()
        found.append({**tiny.weights(run.model), "rng": torch.get_rng_state()})
    assert tiny.different(*found) == []


def test_what_is_known_of_the_optimizer(tmp_path):
    found = optimization(trainer(tmp_path, None, optim="sgd", learning_rate=0.03, max_steps=9))
    assert found == Optimization(0.03, 9, 0.0, adaptive=False)
    assert optimization(trainer(tmp_path, None, max_steps=9)).adaptive
    parameters = [nn.Parameter(torch.zeros(2))]
    own = SGD(parameters, lr=0.2, momentum=0.8)
    given = trainer(tmp_path, None, max_steps=9, optimizers=(own, None))
    assert optimization(given) == Optimization(0.2, 9, 0.8, adaptive=False)


@pytest.mark.parametrize(
    ("penalty", "changes", "why"),
    [
        (L2SP(half_life=0.5), {}, "half_life: an adaptive optimizer"),
        (L2SP(radius=0.5), {}, "radius: bounds"),
        (L2SP(radius=0.5, apply="proximal"), {"optim": "sgd"}, "radius: bounds"),
    ],
)
def test_a_strength_that_does_not_follow_is_told_before_training(penalty, changes, why, tmp_path):
    with pytest.raises(RecipeError, match=why):
        trainer(tmp_path, penalty, **changes)


def test_a_share_of_nothing_is_told(tmp_path):
    args = tiny.arguments(tmp_path)
    with pytest.raises(UserError, match="share of training.*max_steps"):
        TransferTrainer(tiny.bert(), args, penalty=L2SP(half_life=0.5, apply="proximal"), fresh=())


def test_rules_keep_their_lambda_beside_a_half_life(tmp_path):
    rule = {"role": "norm", "lambda": math.inf}
    run = trainer(tmp_path, L2SP(half_life=0.5, apply="proximal", rules=[rule]))
    norms = run.layer_groups.norm_parameters
    assert norms
    assert run.pull.pinned() == norms
    other = run.pull.strength("bert.pooler.dense.weight")
    assert other == run.penalties[0].lambda_ > 0
