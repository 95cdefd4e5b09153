"""Intervals over seeds and episodes against numbers worked out by hand, and their coverage."""

import numpy as np
import pytest

from rlpre.measure.crossed import estimate


def test_crossed_interval_by_hand():
    rng = np.random.default_rng(0)
    by_seed = np.broadcast_to(np.array([0.0, 3.0, 6.0])[:, None, None], (3, 50, 1))
    (found,) = estimate(by_seed, np.ones((3, 50), bool), lambda means: means, rng)
    # As three runs: mean 3, standard error 3 / sqrt(3), t(0.975, 2) = 4.303.
    assert (found.value, found.n) == (3, 3)
    assert found.high - found.value == pytest.approx(7.452, rel=0.1)
    by_episode = np.broadcast_to(np.arange(50.0)[None, :, None], (3, 50, 1))
    (found,) = estimate(by_episode, np.ones((3, 50), bool), lambda means: means, rng)
    # As 50 values that three seeds only repeat: their deviation is 14.577, over sqrt(50), t(0.975, 49) = 2.010.
    assert found.value == 24.5
    assert found.high - found.value == pytest.approx(4.143, rel=0.1)
    kept = np.arange(50) < np.array([50, 50, 10])[:, None]
    (found,) = estimate(by_seed, kept, lambda means: means, rng)
    assert found.value == pytest.approx((0 * 50 + 3 * 50 + 6 * 10) / 110)
    two = estimate(by_seed[:2], kept[:2], lambda means: means, rng)[0]
    assert (two.value, two.low, two.high, two.n) == (1.5, None, None, 2)


def test_crossed_interval_of_a_number_that_is_seldom_known():
    values = np.zeros((3, 50, 2))
    values[:, 0] = 1  # a resample in three lacks the only episode that counts
    kept = np.ones((3, 50), bool)
    unknown, plain = estimate(values, kept, lambda means: np.where(means > 0, means, np.nan), np.random.default_rng(0))
    assert unknown == plain
    assert (unknown.value, unknown.low) == (0.02, None)


def test_crossed_interval_covers_the_mean_when_layouts_differ_most():
    rng, covered, nested = np.random.default_rng(3), 0, 0
    kept = np.ones((5, 60), bool)
    for _ in range(100):
        scores = rng.normal(size=(1, 60)) + 0.1 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 60))
        (found,) = estimate(scores[..., None], kept, lambda means: means, rng)
        covered += found.low <= 0 <= found.high
        seeds = scores.mean(axis=1)
        nested += abs(seeds.mean()) <= 2.776 * seeds.std(ddof=1) / np.sqrt(5)  # as if every seed had its own episodes
    assert covered / 100 == pytest.approx(0.95, abs=0.045)
    assert nested / 100 < 0.85
