"""Signal strength of Gaussian classes is what they were made with, and predicts accuracy."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.measure.probe import factor
from rlpre.measure.signal import expected_accuracy, signal, signals
from rlpre.objectives import FrameReader
from rlpre.report.probes import signal_rows


def classes(a: float, sigma: float, dims: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features a y u + noise in a random direction u, and y in (-1, 1)."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=dims)
    y = rng.permutation(np.arange(count) % 2) * 2 - 1
    return a * y[:, None] * direction / np.linalg.norm(direction) + sigma * rng.normal(size=(count, dims)), y


@pytest.mark.parametrize(("a", "sigma"), [(0.6, 1.0), (1.0, 0.54), (0.0, 1.0)])
def test_gaussian_classes(a: float, sigma: float) -> None:
    x, y = classes(a, sigma, dims=9, count=6000)
    found = signal(x, factor("y", (y > 0).astype(int)))
    assert list(found.separation) == [1]
    assert found.strength == found.separation[1] / 2 == pytest.approx(a / sigma, abs=0.07)
    assert found.predicted == pytest.approx(norm.cdf(a / sigma), abs=0.02)
    assert found.observed == pytest.approx(found.predicted, abs=0.01)


def test_rare_classes_count_like_frequent_ones() -> None:
    x, y = classes(1.0, 1.0, dims=4, count=8000)
    kept = (y < 0) | (np.arange(8000) % 10 == 0)
    found = signal(x[kept], factor("y", (y[kept] > 0).astype(int)))
    assert found.strength == pytest.approx(1.0, abs=0.1)
    assert found.observed == pytest.approx(norm.cdf(1), abs=0.03)


def test_of_many_classes_each_is_told_from_the_others() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(3000) % 3
    x = rng.normal(size=(3000, 5))
    x[:, 0] += 20.0 * (label == 2)
    found = signal(x, factor("thing", label))
    assert list(found.separation) == [0, 1, 2]
    assert found.separation[2] == pytest.approx(20, rel=0.05)
    # 0 among 1 and 2: the best direction sees 2 far away, whose spread hides that 0 and 1 are alike
    assert found.separation[0] < 2
    assert found.observed == pytest.approx((1 + 2 * 0.75) / 3, abs=0.05)  # half of two thirds are guessed


def test_a_held_out_direction_does_not_flatter() -> None:
    x, y = classes(0.0, 1.0, dims=60, count=100)  # separable by chance where it was fitted
    assert abs(signal(x, factor("y", (y > 0).astype(int))).strength) < 0.4


def test_the_stronger_signal_needs_fewer_labels() -> None:
    """From 10 labels a = 1 answers 95 % right and a = 0.6 80 %: in nine dimensions with noise of 0.54, not in one."""
    strong, weak = 1 / 0.54, 0.6 / 0.54
    assert expected_accuracy(strong, labels=10, dims=9) == pytest.approx(0.952, abs=0.002)
    assert expected_accuracy(weak, labels=10, dims=9) == pytest.approx(0.807, abs=0.002)
    assert expected_accuracy(weak, labels=10) == pytest.approx(norm.cdf(weak))
    assert expected_accuracy(weak, labels=10**9, dims=9) == pytest.approx(norm.cdf(weak))
    assert expected_accuracy(0.0, labels=10, dims=9) == 0.5


@pytest.mark.parametrize("a", [1.0, 0.6])
@pytest.mark.parametrize("labels", [10, 40])
def test_expected_accuracy_against_a_simulation(a: float, labels: int) -> None:
    rng, sigma, dims = np.random.default_rng(0), 0.54, 9
    direction = np.eye(dims)[0] * a + rng.normal(size=(20_000, dims)) * sigma / labels**0.5  # mean of y x
    right = norm.cdf(a * direction[:, 0] / (sigma * np.linalg.norm(direction, axis=1))).mean()
    assert expected_accuracy(a / sigma, labels, dims) == pytest.approx(right, abs=0.02)


def test_an_encoder_of_doorkey(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(doorkey.space.shape), features=16)
    reader = FrameReader(doorkey, encoder, None, torch.device("cpu"))
    found = signals(encoder, reader)
    assert {"front", "carrying"} <= set(found)
    assert "distance" not in found  # a quantity
    for of in found.values():
        assert of.strength > 0
        assert of.observed == pytest.approx(of.predicted, abs=0.1)
    assert [row[0] for row in signal_rows(found)][1:] == list(found)
    with pytest.raises(RlpreError, match="label 'distance' is a quantity, but signal strength is that of classes"):
        signals(encoder, reader, ["distance"])
