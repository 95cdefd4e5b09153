"""The head with two priors: the formula, the evidence, the variances, the limit, and real frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.linear_model import Ridge

import envs
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.evaluation.prior import PriorHead, prior_gain
from rlpre.evaluation.probes import labelled_features
from rlpre.objectives import make_reader

Array = np.ndarray


def isotropic(rng: np.random.Generator, n: int, d: int) -> Array:
    """Features with X'X = n I, around 0."""
    x = rng.normal(size=(n, d))
    return np.linalg.qr(x - x.mean(0))[0] * np.sqrt(n)


def uneven(rng: np.random.Generator, n: int, d: int) -> Array:
    """Features whose spread goes from 0.01 to 10, turned at random, not around 0."""
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=(n, d)) * np.logspace(-2, 1, d) @ turn + rng.normal(size=d)


def density(x: Array, y: Array, prior: Array, strength: float, noise: float) -> float:
    """The evidence without algebra: the joint density of n - 1 contrasts between the targets (n, k)."""
    n = len(x)
    contrasts = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, 1:]]))[0][:, 1:].T
    x, y = contrasts @ x, contrasts @ y
    covariance = noise * (np.eye(n - 1) + x @ x.T / strength)
    return sum(stats.multivariate_normal.logpdf(a, b, covariance) for a, b in zip(y.T, (x @ prior).T, strict=True))


def test_isotropic_rows_give_the_weighted_mean():
    rng = np.random.default_rng(0)
    x, parent, pretrained = isotropic(rng, 50, 6), rng.normal(size=6), rng.normal(size=6)
    y = x @ rng.normal(size=6) + rng.normal(size=50) + 3
    theta = x.T @ y / 50
    head = PriorHead.fit(x, y, parent, pretrained, strengths=(7, 20))
    np.testing.assert_allclose(head.weights, (50 * theta + 7 * parent + 20 * pretrained) / 77, atol=1e-12)
    assert head.bias == pytest.approx(y.mean())


def test_uneven_rows_need_the_matrix_form():
    """The weighted mean of priors and least squares predicts worse than least squares alone."""
    rng, errors = np.random.default_rng(1), []
    for _ in range(20):
        x, true = uneven(rng, 64, 16), rng.normal(size=16)
        y = x @ true + rng.normal(size=64)
        parent, pretrained = true + 0.5 * rng.normal(size=(2, 16))
        centred = x - x.mean(0)
        theta = np.linalg.lstsq(centred, y - y.mean(), rcond=None)[0]
        matrix = PriorHead.fit(x, y, parent, pretrained, strengths=(4, 4)).weights
        exact = np.linalg.solve(centred.T @ centred + 8 * np.eye(16), centred.T @ y + 4 * parent + 4 * pretrained)
        np.testing.assert_allclose(matrix, exact, atol=1e-8)
        misses = np.array([theta, (64 * theta + 4 * parent + 4 * pretrained) / 72, matrix]) - true
        errors.append(np.square(misses @ centred.T).mean(1))
    least_squares, mean, exact = np.mean(errors, axis=0)
    assert exact < 0.6 * least_squares < least_squares < mean / 1.2


@pytest.mark.parametrize("rows", [12, 80])
def test_without_priors_it_is_ridge(rows):
    rng = np.random.default_rng(2)
    x = uneven(rng, rows, 20)
    y = x @ rng.normal(size=(20, 3)) + rng.normal(size=(rows, 3))
    head, ridge = PriorHead.fit(torch.tensor(x), y, strengths=(0, 2.5)), Ridge(2.5, solver="svd").fit(x, y)
    np.testing.assert_allclose(head.weights, ridge.coef_.T, atol=1e-8)
    np.testing.assert_allclose(head.predict(x)[0], ridge.predict(x), atol=1e-8)
    assert head.predict(x)[1].shape == (rows,)
    single = PriorHead.fit(x, y[:, 1], strengths=(0, 2.5))
    np.testing.assert_allclose(single.weights, head.weights[:, 1], atol=1e-10)
    assert (single.weights.shape, single.bias.shape, single.predict(x)[0].shape) == ((20,), (), (rows,))


def test_a_strong_prior_is_the_answer_and_a_weak_one_least_squares():
    rng = np.random.default_rng(3)
    x, prior = rng.normal(size=(40, 5)), rng.normal(size=5)
    y = x @ rng.normal(size=5) + rng.normal(size=40) + 2
    strong, weak = (PriorHead.fit(x, y, pretrained=prior, strengths=(0, s)) for s in (1e12, 1e-12))
    np.testing.assert_allclose(strong.weights, prior, atol=1e-9)
    assert strong.bias == pytest.approx((y - x @ prior).mean())
    np.testing.assert_allclose(weak.weights, Ridge(0).fit(x, y).coef_, atol=1e-9)
    moved = PriorHead.fit(x + 5, y - 3, pretrained=prior)
    chosen = PriorHead.fit(x, y, pretrained=prior)
    np.testing.assert_allclose(moved.weights, chosen.weights, atol=1e-8)
    np.testing.assert_allclose(moved.predict(x + 5), chosen.predict(x) - np.array([[3], [0]]), atol=1e-8)


@pytest.mark.parametrize(("rows", "dimensions"), [(30, 8), (10, 25)])
def test_evidence_is_the_density_of_the_targets(rows, dimensions):
    rng = np.random.default_rng(4)
    x = uneven(rng, rows, dimensions)
    parent, pretrained = rng.normal(size=(2, dimensions, 2))
    y = x @ (parent + pretrained) / 2 + rng.normal(size=(rows, 2))
    for strengths in ((0.3, 2), (10, 0), (0, 1e3)):
        head = PriorHead.fit(x, y, parent, pretrained, strengths)
        prior = (strengths[0] * parent + strengths[1] * pretrained) / sum(strengths)
        around = [density(x, y, prior, sum(strengths), head.noise * by) for by in (0.97, 1, 1.03)]
        assert head.evidence == pytest.approx(around[1], rel=1e-8)
        assert around[1] == max(around)


def test_the_strengths_chosen_have_the_highest_evidence():
    rng = np.random.default_rng(5)
    x = uneven(rng, 60, 10)
    parent, pretrained = rng.normal(size=(2, 10))
    y = x @ (0.3 * parent + 0.7 * pretrained + 0.3 * rng.normal(size=10)) + rng.normal(size=60)
    chosen = PriorHead.fit(x, y, parent, pretrained)
    found = optimize.minimize(
        lambda logs: -PriorHead.fit(x, y, parent, pretrained, tuple(np.exp(logs))).evidence,
        [0, 0],
        method="Nelder-Mead",
    )
    assert chosen.evidence == pytest.approx(-found.fun, abs=0.02)
    np.testing.assert_allclose(chosen.strengths, np.exp(found.x), rtol=0.15)
    assert chosen.distance < chosen.limit
    # by construction, nothing else was estimated: the strength is t² d / δ²
    assert sum(chosen.strengths) == pytest.approx(chosen.noise * 10 / chosen.distance)


def test_the_strengths_that_made_the_data_are_found():
    rng, ratios, shares, noises = np.random.default_rng(6), [], [], []
    for _ in range(20):
        x = rng.normal(size=(300, 80)) * np.logspace(-1, 0.5, 80)
        parent, pretrained = rng.normal(size=(2, 80))
        true = (5 * parent + 15 * pretrained) / 20 + rng.normal(size=80) * np.sqrt(4 / 20)
        head = PriorHead.fit(x, x @ true + 2 * rng.normal(size=300), parent, pretrained)
        ratios.append(sum(head.strengths) / 20)
        shares.append(head.strengths[0] / sum(head.strengths))
        noises.append(head.noise)
    assert np.median(ratios) == pytest.approx(1, rel=0.15)
    assert 0.5 < min(ratios) < max(ratios) < 2
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)
    assert np.mean(noises) == pytest.approx(4, rel=0.05)


def test_a_prior_of_the_wrong_sign_is_not_used():
    rng = np.random.default_rng(7)
    x, true = rng.normal(size=(100, 10)), rng.normal(size=10)
    y = x @ true + 0.1 * rng.normal(size=100)
    good, bad, none = (PriorHead.fit(x, y, pretrained=prior) for prior in (true, -true, None))
    assert good.strengths[1] > 1e3 * good.strengths[0]
    assert bad.strengths[1] == 0  # all the trust in 0, which stands for the parent that is not given
    np.testing.assert_allclose(bad.weights, none.weights)
    assert none.strengths == (0, bad.strengths[0])
    assert good.evidence > bad.evidence + 10


@pytest.mark.parametrize("rows", [15, 60])
def test_variance_is_that_of_sampled_answers(rows):
    rng = np.random.default_rng(8)
    x, new = uneven(rng, rows, 20), uneven(rng, 5, 20)
    y = x @ rng.normal(size=20) + rng.normal(size=rows)
    head = PriorHead.fit(x, y, strengths=(1, 2))
    centred = x - x.mean(0)
    covariance = head.noise * np.linalg.inv(centred.T @ centred + 3 * np.eye(20))
    weights = rng.multivariate_normal(head.weights, covariance, 40_000)
    level = y.mean() + np.sqrt(head.noise / rows) * rng.normal(size=(40_000, 1))
    answers = (new - x.mean(0)) @ weights.T + level.T + np.sqrt(head.noise) * rng.normal(size=(5, 40_000))
    mean, variance = head.predict(new)
    np.testing.assert_allclose(variance, answers.var(1), rtol=0.04)
    assert np.all(np.abs(answers.mean(1) - mean) < 0.03 * np.sqrt(variance))
    centre = x.mean(0, keepdims=True)  # where only the bias is open
    assert head.predict(centre)[1] == pytest.approx(head.noise * (1 + 1 / rows))


@pytest.mark.parametrize("make", [isotropic, uneven])
@pytest.mark.parametrize("nearness", [0.6, 1.6])
def test_the_limit_says_on_which_side_the_risk_falls(make, nearness):
    """A prior somewhat nearer or farther than the limit, against least squares on the same draws of noise."""
    rng = np.random.default_rng(10)
    x, strength = make(rng, 120, 40), 30.0
    centred, true = x - x.mean(0), rng.normal(size=40)
    axes = np.linalg.svd(centred, full_matrices=False)[2].T
    clean = x @ true
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    rows = np.average(eigenvalues, weights=(eigenvalues + strength) ** -2.0)
    assert make is uneven or rows == pytest.approx(120)
    limit = 40 * (2 / strength + 1 / rows)
    prior = true + axes @ (rng.choice([-1, 1], 40) * np.sqrt(nearness * limit / 40))
    risks, heads = [], []
    for _ in range(150):
        y = clean + rng.normal(size=120)
        head = PriorHead.fit(x, y, pretrained=prior, strengths=(0, strength))
        least = np.linalg.lstsq(centred, y, rcond=None)[0]
        risks.append([np.square(centred @ (weights - true)).sum() for weights in (head.weights, least)])
        heads.append(head)
    held, free = np.mean(risks, axis=0)
    assert (held < free) == (nearness < 1)
    assert np.mean([(head.distance < head.limit) == (nearness < 1) for head in heads]) > 0.9
    assert np.mean([head.distance for head in heads]) == pytest.approx(nearness * limit, rel=0.15)


GOOD = np.random.default_rng(11).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": GOOD[:, 0]}, "features are of shape (20,): give (rows, dimensions)"),
        ({"features": GOOD[:0]}, "features are of shape (0, 3)"),
        ({"features": GOOD[:1], "targets": [1.0]}, "a head needs at least two"),
        ({"targets": np.ones(19)}, "targets are of shape (19,) for 20 rows"),
        ({"targets": np.ones((20, 1, 1))}, "targets are of shape (20, 1, 1)"),
        ({"targets": np.ones(20)}, "targets are the same in all 20 rows"),
        ({"features": np.ones((20, 3))}, "features are the same in all 20 rows"),
        (
            {"features": np.where(GOOD > 2, np.nan, GOOD) * [[1, np.nan, 1]]},
            "features hold NaN or infinity in 20 of 20",
        ),
        ({"targets": np.append(GOOD[1:, 0], np.inf)}, "targets hold NaN or infinity"),
        ({"parent": np.zeros(4)}, "weights of the parent prior are of shape (4,): this head's are (3,)"),
        ({"pretrained": np.zeros((3, 1))}, "weights of the pretrained prior are of shape (3, 1)"),
        ({"pretrained": [0, np.nan, 0]}, "weights of the pretrained prior hold NaN"),
        ({"strengths": (-1, 2)}, "strengths are -1 and 2: give numbers from 0 on"),
        ({"strengths": (0, 0)}, "not both 0"),
        ({"strengths": (0, np.inf)}, "strengths are 0 and inf"),
        ({"strengths": (np.nan, 1)}, "strengths are nan and 1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(RlpreError) as error:
        PriorHead.fit(**{"features": GOOD, "targets": GOOD[:, 0], **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_perfect_prior_and_features_of_another_encoder():
    head = PriorHead.fit(GOOD, GOOD @ [1, 2, 3], pretrained=[1, 2, 3])
    np.testing.assert_allclose(head.weights, [1, 2, 3], atol=1e-12)
    assert np.isfinite(head.evidence)
    assert head.distance < head.limit
    with pytest.raises(RlpreError, match="features have 2 dimensions, the head 3"):
        head.predict(GOOD[:, :2])


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    out: Path = tmp_path_factory.mktemp("frames") / "other"
    return envs.collect("MiniGrid-DoorKey-6x6-v0", out, 2000, seed=1, behaviour="0.5*random + 0.5*expert:0.2")


def test_a_small_rooms_head_is_a_prior_for_a_larger_room(doorkey, other):
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(doorkey.space.shape))
    small, large = (labelled_features(encoder, make_reader(store, encoder)) for store in (doorkey, other))
    gain = prior_gain(small["front"], large["front"])
    assert gain.gain.low > 0
    assert gain.gain.value == pytest.approx(gain.with_prior.value - gain.without.value)
    assert 0 < gain.trust.value <= 1
    assert gain == prior_gain(small["front"], large["front"])
    few = prior_gain(small["distance"], large["distance"], rows=100, seeds=(0, 1))
    assert (few.gain.n, few.gain.low) == (2, None)
    with pytest.raises(RlpreError, match="100000 labels 'front' are asked for"):
        prior_gain(small["front"], large["front"], rows=100_000)
