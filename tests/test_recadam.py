"""RecAdam: annealed steps and pull, against the paper's algorithm written out by hand."""

import math

import pytest
import tiny
import torch
from test_resume import StopAt, outcome
from torch import nn

from hf_sft import L2SP, Pull, RecAdam, StartingPoint, TransferTrainer
from hf_sft.freezing import FreezePolicy
from hf_sft.layer_groups import LayerGroups
from hf_sft.reporting import charts

HEAD = {"classifier.weight", "classifier.bias"}
RATE, BETAS, EPS = 0.05, (0.9, 0.999), 1e-8


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand(theta, anchor, gradient, steps, gamma, k, t0, implicit, pulled=True):
    """θ ← θ − ηλ(t)·m̂/(√v̂ + ε), then θ ← θ − η(1 − λ(t))γ(θ − θ⁰), or its implicit form."""
    m, v, way = torch.zeros_like(theta), torch.zeros_like(theta), []
    for step in range(steps):
        share = sigmoid(k * (step / steps - t0)) if pulled else 1.0
        g = gradient(theta)
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g * g
        unit = (m / (1 - BETAS[0] ** (step + 1))) / (
            (v / (1 - BETAS[1] ** (step + 1))).sqrt() + EPS
        )
        theta = theta - RATE * share * unit
        pull = RATE * (1 - share) * gamma
        if pulled and implicit:
            theta = (theta + pull * anchor) / (1 + pull)
        elif pulled:
            theta = theta - pull * (theta - anchor)
        way.append(theta)
    return way


class Two(nn.Module):
    """A parameter from the source and a new one."""

    def __init__(self):
        super().__init__()
        self.known = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        self.new = nn.Parameter(torch.linspace(2, 3, 4, dtype=torch.float64))


def gradient_of(target):
    return lambda theta: 0.7 * (theta - target)


def quadratic_run(prior, steps, optimizer_class=torch.optim.Adam, **settings):
    """Trajectories of known and new parameters on ½·0.7‖θ − target‖²; groups as a trainer makes."""
    model, done = Two(), [0]
    start = StartingPoint.of(model, fresh={"new"})
    targets = {"known": start.copies["known"] + 2.0, "new": torch.zeros(4, dtype=torch.float64)}
    groups = [{"params": [model.known]}, {"params": [model.new]}]
    optimizer = optimizer_class(groups, **{"lr": RATE, **settings})
    pull = Pull([prior], model, start, lambda: done[0] / steps)
    pull.attach(optimizer)
    way = []
    for step in range(steps):
        done[0] = step
        for name, parameter in model.named_parameters():
            parameter.grad = gradient_of(targets[name])(parameter.detach())
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == [RATE, RATE]
        way.append({n: p.detach().clone() for n, p in model.named_parameters()})
    return way, start.copies["known"], targets


@pytest.mark.parametrize(("k", "t0"), [(20.0, 0.25), (5.0, 0.5), (100.0, 0.0)])
@pytest.mark.parametrize("gamma", [0.5, 20.0])
def test_it_is_the_algorithm_written_out(gamma, k, t0):
    """Every step of 60, float64, to rounding; new parameters take Adam's whole steps."""
    steps = 60
    way, anchor, targets = quadratic_run(RecAdam(alpha=gamma, k=k, t0=t0), steps)
    settings = {"gamma": gamma, "k": k, "t0": t0, "implicit": True}
    known = by_hand(anchor, anchor, gradient_of(targets["known"]), steps, **settings)
    new = by_hand(Two().new.detach(), None, gradient_of(targets["new"]), steps,
                  pulled=False, **settings)  # fmt: skip
    for found, k_step, n_step in zip(way, known, new, strict=True):
        assert torch.allclose(found["known"], k_step, rtol=1e-12, atol=1e-14)
        assert torch.allclose(found["new"], n_step, rtol=1e-12, atol=1e-14)
    assert (way[-1]["known"] - anchor).abs().max() > 0.1


def test_the_papers_explicit_step_is_its_first_order():
    """The difference to the paper's explicit pull falls with the square of ηγ."""
    errors = []
    for gamma in (0.4, 0.2, 0.1):
        steps = 5
        way, anchor, targets = quadratic_run(RecAdam(alpha=gamma, k=4.0, t0=0.5), steps)
        explicit = by_hand(anchor, anchor, gradient_of(targets["known"]), steps,
                           gamma, 4.0, 0.5, implicit=False)  # fmt: skip
        errors.append((way[-1]["known"] - explicit[-1]).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_the_explicit_step_diverges_where_ours_is_stable():
    """ηγ = 50 > 2: the reference's pull explodes (ALGORITHMS: defect 9)."""
    steps, gamma = 40, 50 / RATE
    way, anchor, targets = quadratic_run(RecAdam(alpha=gamma, t0=0.9), steps)
    explicit = by_hand(anchor, anchor, gradient_of(targets["known"]), steps,
                       gamma, 20.0, 0.9, implicit=False)  # fmt: skip
    assert explicit[-8].abs().max() > 1e3
    assert all((step["known"] - anchor).abs().max() < 2 for step in way)


def test_under_plain_sgd_it_is_the_annealed_objective():
    """The gradient step of λ(t)·L, then the proximal one of (1 − λ(t))·(γ/2)‖d‖²."""
    steps, gamma = 30, 2.0
    way, anchor, targets = quadratic_run(RecAdam(alpha=gamma), steps, torch.optim.SGD)
    theta = anchor.clone()
    for step in range(steps):
        share = sigmoid(20 * (step / steps - 0.25))
        theta = theta - RATE * share * gradient_of(targets["known"])(theta)
        pull = RATE * (1 - share) * gamma
        theta = (theta + pull * anchor) / (1 + pull)
        assert torch.allclose(way[step]["known"], theta, rtol=1e-12, atol=1e-14)


# ---- the schedule ----


def test_the_schedule_is_a_sigmoid_over_the_training():
    prior = RecAdam()
    for progress in (0.0, 0.1, 0.25, 0.6, 1.0):
        share = sigmoid(20 * (progress - 0.25))
        assert prior.step_share(progress) == pytest.approx(share, rel=1e-12)
        assert prior.schedule(progress) == pytest.approx(1 - share, rel=1e-9)
    assert prior.step_share(0.25) == 0.5
    assert prior.step_share(0.0) < 0.01
    assert prior.step_share(0.5) > 0.99
    assert prior.schedule(1.0) < 1e-6
    steep = RecAdam(k=1e6, t0=0.5)  # no overflow
    assert (steep.step_share(0.0), steep.step_share(1.0)) == (0.0, 1.0)


def test_defaults_and_units():
    assert RecAdam().strength == 2500.0  # γ = 5000
    assert RecAdam(alpha=10.0).strength == 5.0
    assert RecAdam().apply == "proximal"
    for wrong in ({"apply": "gradient"}, {"k": 0}, {"t0": 1.5}, {"t0": -0.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RecAdam(**wrong)


def test_the_same_shape_at_any_length():
    """Fractions, not steps: a training twice as long is annealed as one of half its length."""
    halves = []
    for steps in (50, 100):
        way, anchor, _ = quadratic_run(RecAdam(alpha=40.0), steps)
        lengths = [(step["known"] - anchor).norm().item() for step in way]
        halves.append(next(i for i, x in enumerate(lengths) if x > 0.2) / steps)
    assert halves[0] == pytest.approx(halves[1], abs=0.1)


# ---- a training ----


def trainer(folder, prior, stop=None, **changes):
    torch.manual_seed(0)
    return TransferTrainer(
        tiny.bert(0.2),
        tiny.arguments(folder, **{"num_train_epochs": 4, **changes}),
        train_dataset=tiny.texts(24),
        penalty=prior,
        fresh=HEAD,
        callbacks=[StopAt(stop)] if stop else [],
    )


def test_groups_are_split_by_what_is_annealed(tmp_path):
    """Every group is annealed whole or not at all; new parameters, and λ = 0, are not."""
    rules = [{"role": "norm", "lambda": 0.0}]
    run = trainer(tmp_path, RecAdam(rules=rules), weight_decay=0.1)
    optimizer = run.create_optimizer()
    names = {id(p): n for n, p in run.model.named_parameters()}
    kinds = [
        {run.pull.shortened(names[id(p)]) for p in g["params"]} for g in optimizer.param_groups
    ]
    assert all(len(kind) == 1 for kind in kinds)
    assert {next(iter(kind)) for kind in kinds} == {True, False}
    free = {n for n in names.values() if not run.pull.shortened(n)}
    assert free == HEAD | run.layer_groups.norm_parameters


def test_a_training_is_the_algorithm(tmp_path):
    """Through Trainer, with a schedule of its own: rates, order and progress are the right ones."""
    prior, steps = RecAdam(alpha=50.0, k=8.0, t0=0.5), 6
    args = tiny.arguments(tmp_path, max_steps=steps, optim="adamw_torch", max_grad_norm=0,
                          train_sampling_strategy="sequential")  # fmt: skip
    run = TransferTrainer(tiny.bert(), args, train_dataset=tiny.texts(8), penalty=prior, fresh=HEAD)
    run.train()

    model, rows = tiny.bert(), tiny.texts(8)
    batch = {k: torch.tensor([row[k] for row in rows]) for k in rows[0]}
    source = {n: p.detach().clone() for n, p in model.named_parameters()}
    m, v = ({n: torch.zeros_like(p) for n, p in source.items()} for _ in range(2))
    for step in range(steps):
        rate = args.learning_rate * (1 - step / steps)  # Trainer's linear schedule
        model.zero_grad()
        model(**batch).loss.backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                share = 1.0 if name in HEAD else sigmoid(8 * (step / steps - 0.5))
                m[name] = BETAS[0] * m[name] + (1 - BETAS[0]) * p.grad
                v[name] = BETAS[1] * v[name] + (1 - BETAS[1]) * p.grad.square()
                unit = (m[name] / (1 - BETAS[0] ** (step + 1))) / (
                    (v[name] / (1 - BETAS[1] ** (step + 1))).sqrt() + EPS
                )
                p -= rate * share * unit
                pull = rate * (1 - share) * 50.0
                p.copy_((p + pull * source[name]) / (1 + pull))
    # Adam divides by √v + ε where gradients are near 0: rounding is magnified there.
    assert tiny.distance(tiny.weights(model), tiny.weights(run.model)) < 2e-4
    moved = [(p - source[n]).abs().max() for n, p in model.named_parameters() if n not in HEAD]
    assert max(moved) > 5e-3


def test_annealed_in_late_everything_stays(tmp_path):
    """t0 = 1: until the end the source is held; t0 = 0: it is plain fine-tuning after the start."""
    found = {}
    for t0 in (0.0, 1.0):
        run = trainer(tmp_path, RecAdam(t0=t0, k=60.0))
        run.train()
        found[t0] = sum(row["drift"] or 0 for row in run.starting_point.distance(run.model))
        head = tiny.weights(run.model)["classifier.weight"]
        assert (head - tiny.weights(tiny.bert())["classifier.weight"]).abs().max() > 1e-2
    assert found[1.0] < 0.05 * found[0.0]


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.1}])
def test_resuming_is_not_stopping(changes, tmp_path):
    prior = RecAdam(alpha=50.0)
    whole = trainer(tmp_path / "whole", prior, **changes)
    whole.train()
    for step in (2, 3, 8):
        trainer(tmp_path / str(step), prior, stop=step, **changes).train()
        torch.manual_seed(step)
        resumed = trainer(tmp_path / str(step), prior, **changes)
        resumed.train(resume_from_checkpoint=True)
        expected, found = outcome(whole), outcome(resumed)
        assert tiny.different(expected[0], found[0]) == []
        assert expected[1] == found[1]


class HalfRate(FreezePolicy):
    """Half of the learning rate everywhere, by the policy."""

    multiplies = True

    def open(self, groups: LayerGroups, progress, signals):
        return frozenset(groups.parameters)

    def multipliers(self, groups, progress, signals):
        return dict.fromkeys(groups.parameters, 0.5)


def test_with_a_policys_multipliers_both_factors_hold(tmp_path):
    """Half the rate by the policy is half the learning rate: steps and pull alike."""
    found = []
    for policy, rate in ((None, 5e-3), (HalfRate(), 1e-2)):
        torch.manual_seed(0)
        args = tiny.arguments(tmp_path, learning_rate=rate, optim="adamw_torch")
        run = TransferTrainer(tiny.bert(), args, train_dataset=tiny.texts(24), fresh=HEAD,
                              penalty=RecAdam(alpha=50.0), freeze=policy)  # fmt: skip
        run.train()
        found.append(tiny.weights(run.model))
    assert tiny.distance(*found) < 1e-6
    assert tiny.distance(found[0], tiny.weights(tiny.bert())) > 1e-3


def test_the_strength_is_logged_as_it_grows_and_drawn(tmp_path):
    penalty = RecAdam(lambda_=0.5, k=10, t0=0.3)
    trainer = TransferTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path, num_train_epochs=4),
        train_dataset=tiny.texts(16),
        penalty=penalty,
        fresh=HEAD,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "lambda" in entry]
    steps = trainer.state.max_steps
    expected = [0.5 * (1 - sigmoid(10 * (entry["step"] / steps - 0.3))) for entry in logged]
    assert len(logged) == steps
    assert [entry["lambda"] for entry in logged] == pytest.approx(expected)
    assert charts.STRENGTH in dict(charts.history(trainer.state.log_history))


def test_a_strength_that_stays_is_not_logged(tmp_path):
    trainer = TransferTrainer(
        model=tiny.bert(),
        args=tiny.arguments(tmp_path, max_steps=2),
        train_dataset=tiny.texts(16),
        penalty=L2SP(lambda_=0.5),
        fresh=HEAD,
    )
    trainer.train()
    assert not any("lambda" in entry for entry in trainer.state.log_history)
