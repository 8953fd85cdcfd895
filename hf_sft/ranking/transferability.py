"""Scores of a source on a target's labelled rows, without training: LogME, H-score, LEEP, NCE.

Each is higher where the source should transfer better, and comparable between sources on the same
rows only. What is measured is a fit to these rows, not the accuracy that training will reach.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_sft.errors import DataError, SourceError

Array = NDArray[np.float64]
GRID = np.logspace(-12, 12, 97)  # of λ = α/β, in units of σ₁²
CONVERGED, ITERATIONS = 1e-8, 200  # change of log λ in a step; steps at most


def logme(features: Any, labels: Any) -> float:
    """Logarithm of the maximum evidence per example, averaged over the classes (You et al. 2021).

    LogME = 1/K Σ_k max over α, β of 1/n log p(y_k | F, α, β), where y_k (n,) is 1 on class k and 0
    elsewhere, y = Fw + noise, w ~ N(0, α⁻¹I), noise ~ N(0, β⁻¹I). With A = αI + βFᵀF and
    m = βA⁻¹Fᵀy:
    log p = n/2 log β + d/2 log α - n/2 log 2π - β/2 ‖Fm - y‖² - α/2 mᵀm - ½ log|A|.
    Found by iterating γ = Σ_i βσ_i²/(α + βσ_i²), α ← γ/mᵀm, β ← (n - γ)/‖Fm - y‖² over the singular
    values σ of F. F is not centred, as in the paper.

    ICML 2021, arXiv 2102.11005. Needs features only. Range: the real line. It has no upper bound
    where fewer than n directions of F explain a class exactly; α/β ≥ 1e-12 σ₁² keeps it finite.
    Cost, in float64: one SVD, O(n d min(n, d)), and some hundred times O(min(n, d) K).

    Args:
        features: F (n, d).
        labels: class numbers (n,); classes without a row do not count.
    """
    f, y = _features(features), _labels(labels, len(features))
    targets = (y[:, None] == np.unique(y)).astype(np.float64)
    left, sigma, _ = np.linalg.svd(f, full_matrices=False)
    z = left.T @ targets  # (min(n, d), K): the part of each y_k that F can reach
    beyond = np.maximum(np.square(targets).sum(0) - np.square(z).sum(0), 0.0)  # (K,): the rest
    return float(np.mean(_largest_evidence(np.square(sigma), z, beyond, len(f))))


def _largest_evidence(s: Array, z: Array, beyond: Array, n: int) -> Array:
    """(K,) the largest 1/n log p; s (r,) = σ², z (r, K), beyond (K,) = ‖y‖² - ‖z‖².

    The fixed point may be one of several: the iteration starts at the best of a grid over λ = α/β.
    """
    s = s[:, None] / (s[0] or 1.0)
    grid = np.stack([_evidence(np.full(z.shape[1], x), s, z, beyond, n) for x in GRID])
    ratio, found = GRID[grid.argmax(0)], grid.max(0)
    if s[0] == 0:  # no feature says anything: λ drops out
        return found
    for _ in range(ITERATIONS):
        before, ratio = ratio, np.clip(_step(ratio, s, z, beyond, n), GRID[0], GRID[-1])
        found = np.maximum(found, _evidence(ratio, s, z, beyond, n))
        if np.all(np.abs(np.log(ratio / before)) < CONVERGED):
            break
    return found


def _step(ratio: Array, s: Array, z: Array, beyond: Array, n: int) -> Array:
    """α/β after one round of the paper's updates."""
    left_over = ratio / (ratio + s)  # α/(α + βσ²): how much of z the residual Fm - y keeps
    beta = (left_over.sum(0) + n - len(s)) / (np.square(left_over * z).sum(0) + beyond)
    with np.errstate(divide="ignore"):  # m = 0 for a class that no feature tells apart: α = ∞
        alpha = (1 - left_over).sum(0) / (s * np.square(z / (ratio + s))).sum(0)  # γ/mᵀm
    return alpha / beta


def _evidence(ratio: Array, s: Array, z: Array, beyond: Array, n: int) -> Array:
    """(K,) 1/n log p at α/β, with the β that is best there: n/(Σ_i z_i² α/(α + βσ_i²) + beyond)."""
    left_over = ratio / (ratio + s)
    beta = n / ((left_over * np.square(z)).sum(0) + beyond)
    return 0.5 * (np.log(beta / (2 * np.pi)) + np.log(left_over).sum(0) / n - 1)


def h_score(features: Any, labels: Any, shrinkage: float | None = None) -> float:
    """Between-class variance of the features over their variance (Bao et al. 2019), shrunk.

    H = tr(cov_α(F)⁻¹ (1 - α) cov(E[F|y])), cov_α(F) = (1 - α) cov(F) + α tr(cov(F))/d I, with the
    shrinkage α of Ledoit and Wolf (2004) unless given: Ibrahim et al. 2021, arXiv 2110.06893. With
    α = 0 it is Bao's H-score, where directions without variance are left out (pseudo-inverse).

    ICIP 2019. Needs features only. Range: 0 to min(K - 1, d). With α = 0 it is invariant under
    invertible linear maps of F, and says nothing where n ≤ d: then it is K - 1 for any labels,
    unless rows repeat. Cost: one SVD, O(n d min(n, d)), in float64.

    Args:
        features: F (n, d).
        labels: class numbers (n,).
        shrinkage: α in [0, 1]; None for Ledoit and Wolf's.
    """
    f, y = _features(features), _labels(labels, len(features))
    n, d = f.shape
    centred = f - f.mean(0)
    _, sigma, right = np.linalg.svd(centred, full_matrices=False)
    keep = sigma > sigma[0] * max(n, d) * np.finfo(np.float64).eps
    if not keep.any():
        return 0.0
    variances, right = np.square(sigma[keep]) / n, right[keep]
    alpha = ledoit_wolf(centred, variances) if shrinkage is None else shrinkage
    spectrum = (1 - alpha) * variances + alpha * variances.sum() / d
    means = np.stack([centred[y == k].mean(0) for k in np.unique(y)]) @ right.T  # (K, r)
    weights = np.unique(y, return_counts=True)[1] / n
    return float((1 - alpha) * (weights @ np.square(means) / spectrum).sum())


def ledoit_wolf(centred: Array, variances: Array) -> float:
    """Shrinkage α of S = cov(F) towards tr(S)/d I with the least expected squared error.

    α = min(b², δ²)/δ², δ² = ‖S - tr(S)/d I‖²_F, b² = 1/n (1/n Σ_i ‖x_i‖⁴ - ‖S‖²_F)
    (Ledoit and Wolf 2004).

    Args:
        centred: rows x_i (n, d) of mean 0.
        variances: the eigenvalues of S above 0.
    """
    n, d = centred.shape
    size = np.square(variances).sum()  # ‖S‖²_F
    from_identity = size - variances.sum() ** 2 / d
    error = (np.square(np.square(centred).sum(1)).mean() - size) / n
    return float(np.clip(error / from_identity, 0, 1)) if from_identity > 1e-12 * size else 0.0


def leep(probabilities: Any, labels: Any) -> float:
    """Log expected empirical prediction: what the source head's answers say about the labels.

    LEEP = 1/n Σ_i log Σ_z P(y_i|z) θ(x_i)_z, P(y, z) = 1/n Σ_{i: y_i = y} θ(x_i)_z and
    P(y|z) = P(y, z)/Σ_y P(y, z), where θ(x)_z is the source's probability of its own class z.

    Nguyen et al. 2020, ICML, arXiv 2002.12462. Needs the source's own head. Range: -H(y) ≥ -log K
    (nothing) to 0. Cost: O(n Z K).

    Args:
        probabilities: θ (n, Z), rows that sum to 1.
        labels: class numbers (n,).
    """
    theta = _probabilities(probabilities)
    y = _labels(labels, len(theta))
    classes, index = np.unique(y, return_inverse=True)
    joint = np.eye(len(classes))[index].T @ theta  # (K, Z): n P(y, z)
    of_z = joint.sum(0)
    given = np.divide(joint, of_z, out=np.zeros_like(joint), where=of_z > 0)
    return float(np.log((given[index] * theta).sum(1)).mean())


def nce(predictions: Any, labels: Any) -> float:
    """Negative conditional entropy of the labels given the source head's first answers.

    NCE = -H(Y|Z) = Σ_{y,z} P(y, z) log P(y|z), P the shares of the rows, Z = argmax_z θ(x)_z.

    Tran et al. 2019, ICCV, arXiv 1908.08142. Needs the source's own head. Range: -H(y) ≥ -log K
    (nothing) to 0 (Z tells Y); it rises of itself with many source classes on few rows. Cost: O(n).

    Args:
        predictions: the source's classes Z (n,).
        labels: class numbers (n,).
    """
    y = _labels(labels, len(predictions))
    _, z = np.unique(np.asarray(predictions), return_inverse=True)
    pairs, counts = np.unique(np.stack([z, y]), axis=1, return_counts=True)
    return float((counts * np.log(counts / np.bincount(z)[pairs[0]])).sum() / len(y))


def _features(features: Any) -> Array:
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or 0 in f.shape:
        raise SourceError(f"features: rows (n, d) of numbers are wanted, found {f.shape}.")
    if not np.isfinite(f).all():
        rows = int((~np.isfinite(f).all(1)).sum())
        raise SourceError(
            f"features: {rows} of {len(f)} rows hold NaN or infinity. Half precision may overflow: "
            "load the model with model.dtype: float32."
        )
    return f


def _probabilities(probabilities: Any) -> Array:
    theta = np.asarray(probabilities, dtype=np.float64)
    if theta.ndim != 2 or not (np.abs(theta.sum(1) - 1) < 1e-3).all() or (theta < 0).any():
        raise SourceError("probabilities: rows (n, Z) of numbers ≥ 0 that sum to 1 are wanted.")
    return theta


def _labels(labels: Any, count: int) -> NDArray:
    y = np.asarray(labels)
    if y.shape != (count,):
        raise DataError(f"labels: {count} rows need {count} labels, found the shape {y.shape}.")
    if len(np.unique(y)) < 2:
        raise DataError("labels: all rows have one class; there is nothing to tell apart.")
    return y
