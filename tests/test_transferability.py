"""LogME, H-score, LEEP and NCE equal slow independent references, and obey their laws."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf

from hf_sft.errors import UserError
from hf_sft.ranking.transferability import h_score, ledoit_wolf, leep, logme, nce


def problem(n, d, classes, separation, seed=0):
    """Gaussian features around class means ``separation`` apart, labels of every class."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    return rng.normal(size=(n, d)) + separation * rng.normal(size=(classes, d))[y], y


def answers(y, source_classes, sharpness, seed=0):
    """Probabilities of a source head that leans to one of its classes for each label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(y), source_classes))
    logits[np.arange(len(y)), y % source_classes] += sharpness
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)


def entropy(y):
    shares = np.unique(y, return_counts=True)[1] / len(y)
    return float(-(shares * np.log(shares)).sum())


def log_evidence(log_alpha, log_beta, f, y):
    """log p(y | F, α, β) with w integrated out: y is Gaussian with covariance I/β + FFᵀ/α."""
    covariance = np.eye(len(y)) * np.exp(-log_beta) + f @ f.T * np.exp(-log_alpha)
    return multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)


def brute_force_logme(f, labels):
    found = []
    for k in np.unique(labels):
        y = (labels == k).astype(float)
        ends = [
            minimize(lambda p, y=y: -log_evidence(*p, f, y), (a, b), method="Nelder-Mead").fun
            for a in (-2.0, 2.0, 6.0)
            for b in (0.0, 3.0)
        ]
        found.append(-min(ends) / len(y))
    return np.mean(found)


@pytest.mark.parametrize(
    ("n", "d", "classes", "separation"),
    [(40, 5, 3, 0), (40, 5, 3, 2), (30, 50, 3, 1), (50, 20, 4, 0.3), (30, 30, 2, 0)],
)
def test_logme_is_the_largest_evidence(n, d, classes, separation):
    f, y = problem(n, d, classes, separation)
    assert logme(f, y) == pytest.approx(brute_force_logme(f, y), abs=1e-5)


def profile(f, y, ratios):
    """log p(y | F, α, β)/n over α/β with the best β, from the eigenvalues of FFᵀ."""
    values, vectors = np.linalg.eigh(f @ f.T)
    c = np.maximum(values, 0)[:, None] / ratios + 1  # covariance of y, times β
    beta = len(y) / (np.square(vectors.T @ y)[:, None] / c).sum(0)
    return (np.log(beta / (2 * np.pi)) - np.log(c).mean(0) - 1) / 2


def test_logme_finds_the_highest_of_several_maxima():
    """Features of very unequal size have more than one fixed point."""
    rng = np.random.default_rng(5)
    several = 0
    for seed in range(40):
        f, y = problem(20, 15, 3, 1, seed)
        f = f * np.exp(2 * rng.normal(size=15))
        ratios = np.linalg.norm(f, 2) ** 2 * np.logspace(-11, 11, 2201)
        curves = [profile(f, (y == k).astype(float), ratios) for k in range(3)]
        several += any(((c[1:-1] > c[:-2]) & (c[1:-1] > c[2:])).sum() > 1 for c in curves)
        assert logme(f, y) == pytest.approx(np.mean([c.max() for c in curves]), abs=1e-4)
    assert several > 3


def test_logme_of_features_that_say_nothing():
    """w drops out: the best β is n/‖y‖², whatever α is."""
    y = np.repeat([0, 1, 2], [5, 10, 15])
    closed = np.mean([(np.log(30 / c) - np.log(2 * np.pi) - 1) / 2 for c in (5, 10, 15)])
    assert logme(np.zeros((30, 4)), y) == pytest.approx(closed)
    across = np.tile([1.0, -1.0], 15)[:, None]  # orthogonal to both classes
    even = np.repeat([0, 1], [10, 20])
    assert logme(across, even) == pytest.approx(
        np.mean([(np.log(30 / c) - np.log(2 * np.pi) - 1) / 2 for c in (10, 20)]), abs=1e-5
    )


def test_logme_does_not_see_scale_or_rotation():
    f, y = problem(40, 12, 3, 1)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert logme(1e3 * f @ rotation, y) == pytest.approx(logme(f, y), abs=1e-9)
    assert logme(np.pad(f, ((0, 0), (0, 5))), y) == pytest.approx(logme(f, y), abs=1e-9)


def test_logme_of_features_that_are_the_labels_is_finite_and_large():
    _, y = problem(40, 2, 3, 0)
    assert 5 < logme(np.eye(3)[y], y) < 30


def slow_h_score(f, y, shrinkage):
    """tr(cov_a(F)⁻¹ (1 - a) cov(E[F|y])), matrix by matrix."""
    d = f.shape[1]
    covariance = np.cov(f.T, bias=True)
    between = np.cov(np.stack([f[y == k].mean(0) for k in y]).T, bias=True)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / d * np.eye(d)
    return np.trace(np.linalg.solve(shrunk, (1 - shrinkage) * between))


@pytest.mark.parametrize(
    ("n", "d", "shrinkage"),
    [(60, 8, None), (60, 8, 0.0), (60, 8, 0.2), (20, 30, None), (20, 30, 0.2), (20, 30, 0.9)],
)
def test_h_score_is_the_trace_of_the_definition(n, d, shrinkage):
    f, y = problem(n, d, 3, 1)
    a = sklearn_ledoit_wolf(f)[1] if shrinkage is None else shrinkage
    assert h_score(f, y, shrinkage) == pytest.approx(slow_h_score(f, y, a))


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 30), (500, 3), (10, 1)])
def test_the_shrinkage_is_ledoit_and_wolfs(n, d):
    f, _ = problem(n, d, 2, 1)
    centred = f - f.mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2 / n
    assert ledoit_wolf(centred, variances) == pytest.approx(sklearn_ledoit_wolf(f)[1])


def test_h_score_without_shrinkage_is_invariant_under_invertible_maps():
    f, y = problem(60, 6, 3, 1)
    mapped = f @ np.random.default_rng(2).normal(size=(6, 6)) + 7
    assert h_score(mapped, y, 0.0) == pytest.approx(h_score(f, y, 0.0))
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(6, 6)))[0]
    assert h_score(100 * f @ rotation, y) == pytest.approx(h_score(f, y))


def test_h_score_has_its_range():
    f, y = problem(20, 30, 4, 0)
    assert h_score(f, y, 0.0) == pytest.approx(3)  # n ≤ d: any labels are explained
    assert h_score(f, np.random.default_rng(0).permutation(y), 0.0) == pytest.approx(3)
    assert 0 < h_score(f, y) < 3
    assert h_score(np.ones((20, 30)), y) == 0
    assert h_score(f, y, 1.0) == 0


def test_leep_is_its_double_loop():
    _, y = problem(50, 2, 4, 0)
    theta = answers(y, 6, 1.0)
    theta[:, 2] = 0  # a source class that nothing is ever given
    theta /= theta.sum(1, keepdims=True)
    total = 0.0
    for i in range(50):
        expected = 0.0
        for z in (0, 1, 3, 4, 5):
            joint = sum(theta[j, z] for j in range(50) if y[j] == y[i])
            expected += joint / sum(theta[j, z] for j in range(50)) * theta[i, z]
        total += np.log(expected)
    assert leep(theta, y) == pytest.approx(total / 50)


def test_nce_is_minus_the_conditional_entropy_of_the_contingency_table():
    _, y = problem(80, 2, 3, 0)
    z = answers(y, 5, 1.0).argmax(1)
    table = np.zeros((5, 3))
    np.add.at(table, (z, y), 1 / 80)
    of_z = table.sum(1, keepdims=True)
    conditional = -sum(
        table[a, b] * np.log(table[a, b] / of_z[a, 0])
        for a in range(5)
        for b in range(3)
        if table[a, b]
    )
    assert nce(z, y) == pytest.approx(-conditional)


def test_leep_and_nce_have_their_range():
    _, y = problem(60, 2, 3, 0)
    for sharpness in (0.0, 1.0, 5.0):
        theta = answers(y, 7, sharpness)
        assert -entropy(y) <= leep(theta, y) <= 0
        assert -entropy(y) <= nce(theta.argmax(1), y) <= 0
    assert nce(y, y) == leep(np.eye(3)[y], y) == 0
    nothing = np.full((60, 4), 0.25)
    assert leep(nothing, y) == pytest.approx(-entropy(y))
    assert nce(np.zeros(60), y) == pytest.approx(-entropy(y))
    hard = np.eye(7)[answers(y, 7, 1.0).argmax(1)]
    assert leep(hard, y) == pytest.approx(nce(hard.argmax(1), y))


SCORES = {
    "logme": lambda y, sep, of: logme(problem(len(y), 20, 3, sep)[0], of),
    "h_score": lambda y, sep, of: h_score(problem(len(y), 20, 3, sep)[0], of),
    "leep": lambda y, sep, of: leep(answers(y, 5, 2 * sep), of),
    "nce": lambda y, sep, of: nce(answers(y, 5, 2 * sep).argmax(1), of),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_rise_with_separation_and_fall_for_permuted_labels(name):
    _, y = problem(90, 20, 3, 0)
    found = [SCORES[name](y, separation, y) for separation in (0.0, 0.5, 1.0, 2.0)]
    assert found == sorted(found)
    permuted = np.random.default_rng(4).permutation(y)
    assert SCORES[name](y, 1.0, permuted) < SCORES[name](y, 1.0, y)


@pytest.mark.parametrize("name", SCORES)
def test_scores_do_not_depend_on_how_labels_are_numbered(name):
    _, y = problem(60, 20, 3, 0)
    renamed = np.array([17, 3, 8])[y]
    assert SCORES[name](y, 1.0, renamed) == pytest.approx(SCORES[name](y, 1.0, y))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: logme(np.ones((3, 2)), [0, 1]), ["3 rows", "(2,)"]),
        (lambda: logme(np.ones(3), [0, 1, 1]), ["(n, d)", "(3,)"]),
        (lambda: h_score(np.ones((2, 2)), [1, 1]), ["one class"]),
        (lambda: h_score([[1.0], [np.nan], [1.0]], [0, 1, 1]), ["1 of 3 rows", "float32"]),
        (lambda: leep(np.ones((2, 2)), [0, 1]), ["sum to 1"]),
        (lambda: nce([1, 2], [0, 1, 1]), ["2 rows", "(3,)"]),
    ],
)
def test_what_cannot_be_scored_is_told(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []
