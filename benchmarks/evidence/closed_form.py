"""When does a pull to the source help? Two linear tasks, in closed form (E4).

    python benchmarks/evidence closed-form

Target: y = Xθ* + noise of variance σ², XᵀX = N·I, p parameters, loss (1/2N)·‖Xθ − y‖². Source θ⁰
with error δ = θ* − θ⁰. The minimiser with λ·‖θ − a‖² is θ̃ = a + (θ̂ − a)/(1 + 2λ), so with
s = 1/(1 + 2λ)

    risk = E‖θ̃ − θ*‖² = (1 − s)²·‖θ* − a‖² + s²·pσ²/N,   least at 2λ* = pσ²/(N·‖θ* − a‖²).

a = θ⁰ is L2-SP and a = 0 plain L2: the nearer anchor wins, and both lose their use as N grows.
"""

import numpy as np

P, SIZE, NOISE = 20, 2.0, 1.0  # p, ‖θ*‖, σ
ROWS = ((20, 0.3), (20, 1.0), (20, 3.0), (80, 1.0), (320, 1.0))  # N, ‖δ‖
METHODS = ("source", "fine-tuning", "L2 at λ*", "L2-SP at λ*")


def best_strength(distance: float, n: int) -> float:
    """λ* = pσ²/(2N·‖θ* − a‖²)."""
    return P * NOISE**2 / (2 * n * distance**2)


def risk(distance: float, n: int, strength: float) -> float:
    """(1 − s)²·‖θ* − a‖² + s²·pσ²/N."""
    s = 1 / (1 + 2 * strength)
    return (1 - s) ** 2 * distance**2 + s**2 * P * NOISE**2 / n


def theory(n: int, delta: float) -> dict[str, float]:
    """Method -> risk."""
    return {
        "source": delta**2,
        "fine-tuning": risk(1.0, n, 0.0),
        "L2 at λ*": risk(SIZE, n, best_strength(SIZE, n)),
        "L2-SP at λ*": risk(delta, n, best_strength(delta, n)),
    }


def simulation(n: int, delta: float, repeats: int = 2000, seed: int = 0) -> dict[str, float]:
    """Method -> mean of ‖θ̃ − θ*‖² over draws of the noise, by solving the normal equations."""
    generator = np.random.default_rng(seed)
    x = np.linalg.qr(generator.standard_normal((n, P)))[0] * n**0.5
    truth, error = (_on_sphere(generator, radius) for radius in (SIZE, delta))
    source = truth - error
    y = x @ truth[:, None] + NOISE * generator.standard_normal((n, repeats))
    arms = {
        "fine-tuning": (np.zeros(P), 0.0),
        "L2 at λ*": (np.zeros(P), best_strength(SIZE, n)),
        "L2-SP at λ*": (source, best_strength(delta, n)),
    }
    solved = {name: solve(x, y, anchor, strength) for name, (anchor, strength) in arms.items()}
    solved["source"] = source[:, None]
    return {name: float(((solved[name] - truth[:, None]) ** 2).sum(0).mean()) for name in METHODS}


def solve(x: np.ndarray, y: np.ndarray, anchor: np.ndarray, strength: float) -> np.ndarray:
    """argmin_θ (1/2N)·‖Xθ − y‖² + λ·‖θ − a‖², for every column of y: (p, repeats)."""
    n, p = x.shape
    left = x.T @ x / n + 2 * strength * np.eye(p)
    return np.linalg.solve(left, x.T @ y / n + 2 * strength * anchor[:, None])


def _on_sphere(generator: np.random.Generator, radius: float) -> np.ndarray:
    direction = generator.standard_normal(P)
    return radius * direction / np.linalg.norm(direction)


def table() -> list[dict]:
    """One row per (N, ‖δ‖): what theory says, what 2000 draws give."""
    return [
        {"N": n, "delta": d, "theory": theory(n, d), "simulation": simulation(n, d)}
        for n, d in ROWS
    ]


def show() -> None:
    """Print the table: theory (mean of 2000 draws)."""
    print("N, ‖δ‖", *METHODS, sep="\t")
    for row in table():
        pairs = ((row["theory"][name], row["simulation"][name]) for name in METHODS)
        print(f"{row['N']}, {row['delta']:g}", *(f"{a:.3f} ({b:.3f})" for a, b in pairs), sep="\t")
