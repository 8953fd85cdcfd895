"""Paired intervals are Student's; a difference is of pairs that both arms have."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_sft.comparing.paired import difference, spread


def test_the_interval_is_scipys_and_its_closed_form():
    rng = np.random.default_rng(0)
    values, base = rng.normal(0.8, 0.1, 7), rng.normal(0.7, 0.1, 7)
    found = difference(dict(enumerate(values)), dict(enumerate(base)))
    low, high = stats.ttest_rel(values, base).confidence_interval(0.95)
    assert (found.count, found.low, found.high) == pytest.approx((7, low, high))
    assert found.mean == pytest.approx((values - base).mean())
    two = difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0})  # t with 1 degree of freedom is tan(π p/2)
    assert two.high - two.mean == pytest.approx(math.tan(math.pi * 0.95 / 2))


def test_only_pairs_count_whatever_their_order():
    found = difference({3: 2.0, 1: 5.0, 9: 7.0}, {1: 4.0, 3: 1.0, 5: 100.0})
    assert (found.count, found.mean, found.low, found.high) == (2, 1.0, 1.0, 1.0)
    assert difference({1: 2.0}, {2: 2.0}) is None


def test_one_pair_has_no_interval_and_what_is_no_number_is_left_out():
    found = difference({1: 2.0, 2: math.nan}, {1: 1.5, 2: 1.0})
    assert (found.count, found.mean, found.low, found.high) == (1, 0.5, None, None)
    assert spread([1.0, math.inf]).deviation is None
    assert spread([math.nan]) is None


def test_what_both_arms_share_of_a_seed_does_not_widen_the_interval():
    shared = [10.0, -40.0, 25.0, 3.0]
    base = dict(enumerate(shared))
    arm = {seed: value + 1 + 0.1 * (-1) ** seed for seed, value in base.items()}
    found = difference(arm, base)
    assert found.high - found.low < 0.5 < spread(shared).deviation


def test_spread_is_the_sample_standard_deviation():
    values = [0.2, 0.5, 0.9]
    found = spread(values)
    assert (found.count, found.mean, found.deviation) == pytest.approx(
        (3, np.mean(values), np.std(values, ddof=1))
    )
