"""Two causes: effects that multiply, effects that add up, and the gradient descent that the picture comes from."""

import numpy as np
import pytest

from rlpre.errors import RlpreError
from rlpre.measure.factorial import two_way

LUCK = np.array([0.7, 0.9, 1.0, 1.1, 1.4])  # of the seeds: it strikes all four runs of one alike


def test_effects_that_multiply() -> None:
    steps = 1000.0 * np.array([[12, 4], [6, 2]])[..., None] * LUCK
    found = two_way(steps, np.ones(steps.shape, bool), np.random.default_rng(0))
    assert found.first.value == pytest.approx(2)
    assert found.second.value == pytest.approx(3)
    assert found.interaction.value == pytest.approx(1)
    assert found.first.high - found.first.low < 1e-9, "each seed is its own control"
    assert found.difference.value == pytest.approx((12 - 6 - 4 + 2) * 1000 * LUCK.mean())
    assert found.difference.low > 0
    assert found.censored == 0


def test_effects_that_add_up() -> None:
    noise = np.random.default_rng(0).normal(0, 50, (2, 2, 5))
    steps = 1000.0 * np.array([[12, 8], [6, 2]])[..., None] + noise
    found = two_way(steps, steps < 12_000, np.random.default_rng(0))
    assert found.difference.low < 0 < found.difference.high
    assert found.interaction.high < 1, "the same steps are a larger share of fewer"
    assert found.interaction.value == pytest.approx((12 / 6) / (8 / 2), rel=0.05)
    assert found.first.value == pytest.approx(np.sqrt(2 * 4), rel=0.05)
    assert found.censored == (steps >= 12_000).sum() > 0


def descend(error: float, condition: float, seed: int) -> int:
    """Steps of gradient descent on a quadratic with eigenvalues 1 / condition .. 1 until the error is below 1e-4."""
    pace = np.geomspace(1 / condition, 1, 6)
    start = np.random.default_rng(seed).normal(size=6)
    weights, step = error * start / np.linalg.norm(start), 0
    while np.linalg.norm(weights) >= 1e-4:
        weights, step = weights * (1 - 0.5 * pace), step + 1
    return step


def test_gradient_descent_multiplies() -> None:
    """A start that is a thousand times nearer takes the same share off, whatever the conditioning."""
    steps = np.array([[[descend(e, c, seed) for seed in range(5)] for c in (400, 10)] for e in (100.0, 0.1)], float)
    found = two_way(steps, np.ones(steps.shape, bool), np.random.default_rng(0))
    assert found.first.value == pytest.approx(6 / 3, rel=0.25), "orders of magnitude to go"
    assert found.second.value == pytest.approx(400 / 10, rel=0.25)
    assert found.interaction.value == pytest.approx(1, rel=0.15)
    assert found.difference.low > 1000


def test_fewer_than_three_seeds_have_no_interval() -> None:
    found = two_way(np.full((2, 2, 2), 5.0), np.ones((2, 2, 2), bool), np.random.default_rng(0))
    assert (found.first.value, found.first.low, found.difference.high) == (1, None, None)


@pytest.mark.parametrize(("shape", "value"), [((2, 3, 5), 1.0), ((2, 2, 0), 1.0), ((2, 2), 1.0), ((2, 2, 3), 0.0)])
def test_bad_steps_are_refused(shape: tuple[int, ...], value: float) -> None:
    steps = np.full(shape, value)
    with pytest.raises(RlpreError, match="steps are"):
        two_way(steps, np.ones(shape, bool), np.random.default_rng(0))
