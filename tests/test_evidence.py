"""The evidence: E4's theory is its simulation, a rerun skips what is there, the page is written."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_sft import L2SP, StartingPoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks" / "evidence"))
import closed_form
import driver
import page
from arms import Arm, Choice, choose, select
from ledger import Ledger
from summary import Row, front, paired, spread


@pytest.mark.parametrize(("n", "delta"), closed_form.ROWS)
def test_theory_is_what_solving_gives(n, delta):
    theory, drawn = closed_form.theory(n, delta), closed_form.simulation(n, delta, 4000, seed=1)
    for name in closed_form.METHODS:
        assert drawn[name] == pytest.approx(theory[name], rel=0.03)


@pytest.mark.parametrize("n", [20, 80, 320])
@pytest.mark.parametrize("delta", [0.3, 1.0, 1.9, 2.1, 3.0])
def test_the_pull_to_the_source_beats_the_pull_to_zero_iff_the_source_is_nearer(n, delta):
    risks = closed_form.theory(n, delta)
    assert (risks["L2-SP at λ*"] < risks["L2 at λ*"]) == (delta < closed_form.SIZE)
    assert risks["L2-SP at λ*"] <= min(risks["source"], risks["fine-tuning"])


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_no_other_strength_has_less_risk(factor):
    best = closed_form.best_strength(1.0, 80)
    assert closed_form.risk(1.0, 80, best) < closed_form.risk(1.0, 80, factor * best)


def test_the_products_gradient_is_zero_at_the_closed_form_solution():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((30, 4)), generator.standard_normal((30, 1))
    anchor, strength = generator.standard_normal(4), 0.3
    model = torch.nn.Module()
    model.theta = torch.nn.Parameter(torch.tensor(anchor))
    start = StartingPoint.of(model, fresh=())
    solution = closed_form.solve(x, y, anchor, strength)[:, 0]
    model.theta.data = torch.tensor(solution)
    residual = torch.tensor(x) @ model.theta - torch.tensor(y[:, 0])
    (residual.square().sum() / (2 * len(x))).backward()
    assert model.theta.grad.abs().max() > 0.01
    L2SP(lambda_=strength).add_gradient_(dict(model.named_parameters()), start)
    assert model.theta.grad.abs().max() < 1e-12


class Counting:
    """An experiment whose accuracy is its settings' a, over two seeds."""

    name, title, setting, retained = "tiny", "Tiny", "Nothing is trained.", "kept, %"
    seeds = range(3)
    arms = (
        Arm(
            "full fine-tuning", ({"learning_rate": 0.1, "a": 0.5}, {"learning_rate": 0.2, "a": 0.7})
        ),
        Arm("stopped", base="full fine-tuning", variants=("stop 0.5",)),
        Arm("a quarter", base="full fine-tuning", change={"rate_factor": 0.25}),
    )

    def __init__(self):
        self.trained = []

    def measure(self, settings, seed):
        self.trained.append((settings, seed))
        score = {"accuracy": settings["a"] + 0.01 * seed, "retention": settings["learning_rate"]}
        states = {"final": score, "stop 0.5": score | {"retention": 0.9}}
        return {"test": states, "validation": states}


def test_a_rerun_trains_only_what_is_missing(tmp_path):
    path, first, second = tmp_path / "results.jsonl", Counting(), Counting()
    driver.run([first], Ledger(path))
    driver.run([second], Ledger(path))
    assert len(first.trained) == 2 * 2 + 2 * 2  # both arms for either candidate, then two seeds
    assert second.trained == []
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20])  # killed while writing
    driver.run([second], Ledger(path))
    assert second.trained == first.trained[-2:]
    assert [json.loads(line)["seed"] for line in Ledger(path).path.read_text().splitlines()[-2:]]


def test_a_line_cut_off_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    Ledger(path).add("tiny", {"a": 1}, 0, {}, 1.0)
    path.write_text(path.read_text() + '{"experiment": "ti')
    Ledger(path).add("tiny", {"a": 2}, 0, {}, 2.6)
    known = Ledger(path)
    assert [line["settings"]["a"] for line in known.lines] == [1, 2]
    assert known.cpu_hours("tiny") == pytest.approx(3.6 / 3600)


def test_all_arms_have_a_seed_before_the_next_begins(tmp_path):
    experiment = Counting()
    driver.run([experiment], Ledger(tmp_path / "results.jsonl"))
    seeds = [seed for _, seed in experiment.trained]
    assert seeds == sorted(seeds)


def test_among_equals_the_one_that_keeps_most_is_chosen():
    options = [Choice({"a": i}, "final") for i in range(3)]
    scores = [
        {"accuracy": 0.870, "retention": 0.5},
        {"accuracy": 0.866, "retention": 0.8},
        {"accuracy": 0.860, "retention": 0.9},
    ]
    assert choose(options, scores).settings == {"a": 1}


def test_a_choice_says_how_many_candidates_it_had():
    states = {"final": {"accuracy": 0.5, "retention": 0.5}}
    found = select(Counting.arms[:1], lambda s: {"validation": states} if s["a"] == 0.5 else None)
    assert (found["full fine-tuning"].tried, found["full fine-tuning"].of) == (1, 2)


def test_differences_are_paired_by_seed():
    base, better = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.51, 1: 0.71}
    assert paired(better, base) == "+1.00 ± 0.00"
    assert paired({0: 0.52, 1: 0.69}, base) == "+0.50 ± 1.50 n.s."
    assert spread({0: 0.5, 1: 0.7}) == "60.0 ± 14.1"


def test_the_front_holds_what_nothing_beats():
    assert front([(1, 3), (2, 2), (2, 1), (0, 2.5), (3, 0)]) == [(1, 3), (2, 2), (3, 0)]


def test_the_page_has_every_arm_and_its_picture(tmp_path):
    experiment, ledger = Counting(), Ledger(tmp_path / "results.jsonl")
    driver.run([experiment], ledger)
    empty = SimpleNamespace(name="later", title="Later", arms=Counting.arms, seeds=range(1))
    page.write([experiment, empty], ledger, tmp_path / "docs")
    text = (tmp_path / "docs" / "evidence.md").read_text()
    for arm in Counting.arms:
        assert f"| {arm.name} |" in text
    assert "Nothing has been measured yet" in text
    assert "71.0 ± 1.0" in text  # seeds 0, 1, 2 of the better candidate
    for name in ("evidence_tiny.svg", "evidence_closed_form.svg"):
        assert name in text
        assert (tmp_path / "docs" / name).stat().st_size > 1000


def test_what_was_not_drawn_keeps_a_row_without_retention():
    row = Row("from scratch", Choice({"learning_rate": 0.1}, "final", 1, 1), {0: 0.8}, {})
    assert "| – | – |" in page.table([row], "kept, %")
