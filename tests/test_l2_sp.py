"""L2-SP against its closed forms: Ω = λ‖θ − θ⁰‖² + head·‖θ_new‖², gradient 2λ(θ − θ⁰)."""

import pytest
import tiny
import torch
from torch import nn

from hf_sft import L2SP, StartingPoint
from hf_sft.penalties import terms

LAMBDA = 0.3


def vector(values):
    """A model that is one parameter θ."""
    model = nn.Module()
    model.theta = nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())
    return model


def quadratic(dim=5):
    """H (positive definite), the task's minimiser t, the starting point a."""
    root, t, a = (torch.randn(*size, dtype=torch.float64) for size in ((dim, dim), (dim,), (dim,)))
    return root @ root.T / dim + 0.5 * torch.eye(dim, dtype=torch.float64), t, a


def minimiser(H, t, a):
    """argmin of ½(θ−t)ᵀH(θ−t) + λ‖θ−a‖²."""
    identity = torch.eye(len(t), dtype=H.dtype)
    return torch.linalg.solve(H + 2 * LAMBDA * identity, H @ t + 2 * LAMBDA * a)


def moved(build, fresh=()):
    """A model away from its starting point, with a random gradient on every parameter."""
    model = build()
    start = StartingPoint.of(model, fresh=fresh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
            parameter.grad = torch.randn_like(parameter)
    return model, start


def pull(penalty, model, start, **settings):
    """What add_gradient_ adds, name by name, to gradients of zero."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient_(dict(model.named_parameters()), start, **settings)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# ---- closed forms ----


def test_gradient_vanishes_at_the_minimiser_of_a_quadratic():
    H, t, a = quadratic()
    model = vector(a)
    start = StartingPoint.of(model, fresh=())
    theta = minimiser(H, t, a)
    model.theta.data.copy_(theta)
    task = H @ (theta - t)
    total = task + pull(L2SP(lambda_=LAMBDA), model, start)["theta"]
    assert total.abs().max() < 1e-14
    assert task.abs().max() > 1e-2


def test_gradient_vanishes_at_the_ridge_solution_of_linear_regression():
    """½‖WX − Y‖² + λ‖W − W₀‖² has its minimum at (YXᵀ + 2λW₀)(XXᵀ + 2λI)⁻¹."""
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    start, W0 = StartingPoint.of(model, fresh=()), model.weight.detach().clone()
    X, Y = torch.randn(4, 20, dtype=torch.float64), torch.randn(3, 20, dtype=torch.float64)
    gram = X @ X.T + 2 * LAMBDA * torch.eye(4, dtype=torch.float64)
    model.weight.data = torch.linalg.solve(gram, (Y @ X.T + 2 * LAMBDA * W0).T).T.contiguous()
    (0.5 * (model(X.T).T - Y).square().sum()).backward()
    assert model.weight.grad.abs().max() > 1e-2
    L2SP(lambda_=LAMBDA).add_gradient_(dict(model.named_parameters()), start)
    assert model.weight.grad.abs().max() < 1e-12


def test_gradient_descent_follows_the_closed_trajectory():
    """θ_k = θ* + (I − η(H + 2λI))^k (θ₀ − θ*), from any θ₀."""
    H, t, a = quadratic()
    model, rate, steps = vector(a), 0.1, 50
    start = StartingPoint.of(model, fresh=())
    theta0 = torch.randn(5, dtype=torch.float64)
    model.theta.data.copy_(theta0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        model.theta.grad = H @ (model.theta.detach() - t)
        L2SP(lambda_=LAMBDA).add_gradient_(dict(model.named_parameters()), start)
        optimizer.step()
    best = minimiser(H, t, a)
    contraction = torch.eye(5, dtype=torch.float64) - rate * (
        H + 2 * LAMBDA * torch.eye(5, dtype=torch.float64)
    )
    expected = best + torch.linalg.matrix_power(contraction, steps) @ (theta0 - best)
    assert torch.allclose(model.theta, expected, rtol=0, atol=1e-14)


def test_alpha_of_the_paper_is_twice_lambda():
    """Li et al. 2018, eq. 3: (α/2)‖w_S − w⁰_S‖² + (αβ/2)‖w_S̄‖², with α = 2λ and αβ = 2·head."""
    alpha, beta = 0.1, 0.1
    model, start = moved(lambda: nn.Linear(4, 3).double(), fresh={"bias"})
    value = L2SP(lambda_=alpha / 2, head=alpha * beta / 2).value(
        dict(model.named_parameters()), start
    )
    known = (model.weight - start.copies["weight"]).square().sum()
    paper = alpha / 2 * known + alpha * beta / 2 * model.bias.square().sum()
    assert torch.allclose(value, paper, rtol=1e-6)


# ---- the gradient is the derivative of the value ----


@pytest.mark.parametrize("chunk", [1, 7, 100, terms.CHUNK])
@pytest.mark.parametrize("kind", ["bert", "resnet"])
def test_gradient_is_autograd_of_value(kind, chunk, monkeypatch):
    monkeypatch.setattr(terms, "CHUNK", chunk)
    fresh = [n for n, _ in tiny.KINDS[kind][0]().named_parameters()][-2:]
    model, start = moved(lambda: tiny.KINDS[kind][0]().double(), fresh)
    penalty, theta = L2SP(lambda_=0.2, head=0.05), dict(model.named_parameters())
    names = list(theta)
    expected = torch.autograd.grad(penalty.value(theta, start), list(theta.values()))
    found = pull(penalty, model, start)
    for name, gradient in zip(names, expected, strict=True):
        assert gradient.abs().max() > 0, name
        assert torch.allclose(found[name], gradient, rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("count", [1, 2, 13])
def test_chunks_cover_every_element_once(count, monkeypatch):
    monkeypatch.setattr(terms, "CHUNK", 7)
    whole = torch.zeros(count, 3, 2)
    for part, missing in terms.chunks(whole, None):
        part.add_(1)
        assert missing is None
    assert torch.equal(whole, torch.ones(count, 3, 2))


def test_nothing_pulls_at_the_starting_point():
    model = tiny.bert()
    start = StartingPoint.of(model, fresh=())
    penalty = L2SP(lambda_=5.0, head=5.0)
    assert penalty.value(dict(model.named_parameters()), start) == 0
    assert all(not gradient.any() for gradient in pull(penalty, model, start).values())


def test_value_is_zero_where_nothing_is_pulled():
    model, start = moved(tiny.bert)
    assert L2SP(lambda_=0.0).value(dict(model.named_parameters()), start) == 0


# ---- what is pulled, and what is left ----


def test_head_goes_to_zero_and_the_rest_to_the_source():
    fresh = {"classifier.weight", "classifier.bias"}
    model, start = moved(tiny.bert, fresh)
    found = pull(L2SP(lambda_=0.5, head=0.25), model, start)
    for name, parameter in model.named_parameters():
        target = torch.zeros_like(parameter) if name in fresh else start.copies[name]
        factor = 2 * (0.25 if name in fresh else 0.5)
        assert torch.allclose(found[name], factor * (parameter - target), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("lambda_", "head"), [(0.0, 0.0), (0.0, 0.1), (0.1, 0.0)])
def test_coefficient_zero_leaves_the_gradient_bit_for_bit(lambda_, head):
    fresh = {"classifier.weight"}
    model, start = moved(tiny.bert, fresh)
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    L2SP(lambda_=lambda_, head=head).add_gradient_(dict(model.named_parameters()), start)
    for name, parameter in model.named_parameters():
        pulled = head > 0 if name in fresh else lambda_ > 0
        assert torch.equal(parameter.grad, before[name]) is not pulled, name


def test_scale_is_a_factor_on_the_pull():
    """A power of two, as loss scalers use, scales without rounding."""
    model, start = moved(tiny.bert, {"classifier.weight"})
    penalty = L2SP(lambda_=0.1, head=0.2)
    once = pull(penalty, model, start)
    scaled = pull(penalty, model, start, scale=2.0**16)
    assert all(torch.equal(scaled[name], once[name] * 2**16) for name in once)


def test_frozen_and_unused_parameters_are_left_out():
    """No gradient is made where there is none; what does not train does not count in the value."""
    model, start = moved(tiny.bert)
    theta = dict(model.named_parameters())
    frozen, unused = "bert.embeddings.word_embeddings.weight", "classifier.bias"
    theta[frozen].requires_grad_(False)
    kept = theta[frozen].grad.clone()
    theta[unused].grad = None
    L2SP(lambda_=1.0).add_gradient_(theta, start)
    assert torch.equal(theta[frozen].grad, kept)
    assert theta[unused].grad is None
    others = [(p - start.copies[n]).square().sum() for n, p in theta.items() if n != frozen]
    assert torch.allclose(L2SP(lambda_=1.0).value(theta, start), sum(others), rtol=1e-5)


def test_tied_weights_count_once():
    """GPT-2's output layer is its embedding: a step of 1 everywhere has length² = parameters."""
    model = tiny.gpt2().double()
    assert model.lm_head.weight is model.transformer.wte.weight
    start = StartingPoint.of(model, fresh=())
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    value = L2SP(lambda_=0.5).value(dict(model.named_parameters()), start)
    assert value.item() == pytest.approx(0.5 * sum(p.numel() for p in before), rel=1e-12)
    found = pull(L2SP(lambda_=0.5), model, start)
    assert found["transformer.wte.weight"].allclose(torch.ones((), dtype=torch.float64))


def test_buffers_and_scalar_parameters():
    """Integer and 0-d buffers stay; a 0-d parameter is pulled like any other."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("step", torch.tensor(4))

    model, start = moved(Scaled)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert {b.ndim for b in buffers.values()} == {0, 1}
    assert not buffers["step"].is_floating_point()
    found = pull(L2SP(lambda_=0.5), model, start)
    assert torch.equal(found["scale"], model.scale.detach() - 2)
    assert tiny.different(buffers, dict(model.named_buffers())) == []


@pytest.mark.parametrize("chunk", [7, terms.CHUNK])
def test_any_memory_layout(chunk, monkeypatch):
    """Parameter, anchor and gradient may each be laid out in their own way."""
    monkeypatch.setattr(terms, "CHUNK", chunk)
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    turned = nn.Parameter(torch.randn(5, 8).t())
    conv.turned = turned
    start = StartingPoint.of(conv, fresh=())
    with torch.no_grad():
        conv.weight.add_(1)
        turned.add_(1)
    conv.weight.grad = torch.zeros(6, 4, 3, 3)  # contiguous, unlike the weight
    turned.grad = torch.zeros(8, 5)
    L2SP(lambda_=0.5).add_gradient_(dict(conv.named_parameters()), start)
    assert torch.allclose(conv.weight.grad, torch.ones(()))
    assert torch.allclose(turned.grad, torch.ones(()))
    assert not turned.is_contiguous()
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("settings", [{"lambda": -1}, {"head": -1}, {"lambda": float("inf")}])
def test_strength_is_finite_and_not_negative(settings):
    with pytest.raises(ValueError, match="lambda|head"):
        L2SP(**settings)
