"""The pure gain: by hand, in simulations, and where target layouts were planted among real frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
from rlpre import Encoder, InputSpec, RlpreError
from rlpre.measure import stats
from rlpre.measure.contamination import PureGain, pure_gain
from rlpre.measure.probe import encode

PLAIN = np.array([[1.0, 0.0], [0.0, 0.0]])  # contaminated and clean pretraining, on seen and unseen items
PURE, LEAK = 0.12, 0.1


def found(gains: np.ndarray, overlap: np.ndarray = PLAIN) -> PureGain:
    return pure_gain(gains, overlap, np.random.default_rng(0))


def simulated(rng: np.random.Generator, seeds: int, noise: float = 0.02) -> np.ndarray:
    """Seen items are harder by .04, the frames that hold them are better by .03 in general; the mean gain is .12."""
    items, frames = np.array([-0.02, 0.02]), np.array([[0.0], [-0.03]])
    return PURE + items + frames + LEAK * PLAIN + noise * rng.standard_normal((seeds, 2, 2))


def test_by_hand() -> None:
    """Naive .17; the leak is (.20 - .09) - (.14 - .13) = .10, half of which is in it."""
    gain = found(np.array([[[0.20, 0.14], [0.09, 0.13]]] * 3))
    assert (gain.naive.value, gain.leak.value, gain.pure.value) == pytest.approx((0.17, 0.10, 0.12))
    assert gain.overlap == 0.5
    assert gain.pure.low == pytest.approx(0.12)


def test_over_several_overlaps_it_is_the_height_of_the_line_at_zero() -> None:
    overlap = np.array([0.1, 0.4, 0.5, 0.9])
    rng = np.random.default_rng(0)
    gains = PURE + LEAK * overlap + 0.01 * rng.standard_normal((5, 4))
    slope, height = np.polyfit(overlap, gains.mean(0), 1)
    gain = found(gains, overlap)
    assert (gain.leak.value, gain.pure.value) == pytest.approx((slope, height))
    assert gain.naive.value == pytest.approx(height + slope * overlap.mean())


def test_what_pretrainings_and_items_have_in_common_drops_out() -> None:
    overlap = np.array([[0.8, 0.3, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 0.4]])
    rng = np.random.default_rng(0)
    items, frames = rng.standard_normal((3, 1)), rng.standard_normal(3)
    gain = found(np.stack([items + frames + 0.7 * overlap] * 3), overlap)
    assert gain.leak.value == pytest.approx(0.7)
    assert gain.pure.value == pytest.approx((items[0] + frames).mean())


@pytest.mark.parametrize("seeds", [3, 10])
def test_planted_overlap_is_recovered_where_the_naive_gain_is_not(seeds: int) -> None:
    rng = np.random.default_rng(0)
    gains = [found(simulated(rng, seeds)) for _ in range(200)]

    def covered(figure: Callable[[PureGain], stats.Interval], truth: float) -> float:
        return float(np.mean([figure(gain).low <= truth <= figure(gain).high for gain in gains]))

    assert covered(lambda gain: gain.pure, PURE) > 0.91
    assert covered(lambda gain: gain.leak, LEAK) > 0.91
    assert covered(lambda gain: gain.naive, PURE) < (0.5 if seeds == 3 else 0.01)
    assert np.mean([gain.pure.value for gain in gains]) == pytest.approx(PURE, abs=0.004)
    assert np.mean([gain.naive.value for gain in gains]) == pytest.approx(0.17, abs=0.004)


def test_planted_layouts_are_recovered(tmp_path: Path) -> None:
    """A readout of all cells is pretrained on 50 layouts, 20 of the target's 40 among them, or 20 others.

    Its gain is over the usual content of each cell; the truth is the gain of the one that saw none of the target.
    """
    pool = envs.collect("MiniGrid-FourRooms-v0", tmp_path, 3600, seed=0, n_envs=120)
    _, rows = np.unique(pool.ids, return_index=True)
    layout, cells = pool.episode[rows], pool.codes(rows)[..., 0].reshape(len(rows), -1)
    gains = []
    for seed in range(6):
        torch.manual_seed(seed)
        features = encode(Encoder("cnn", InputSpec(pool.space.shape), features=128), pool, rows).double().numpy()
        order = np.random.default_rng(seed).permutation(layout.max() + 1)
        seen, unseen, other = (np.flatnonzero(np.isin(layout, order[at : at + 20])) for at in (0, 20, 40))
        base = np.flatnonzero(np.isin(layout, order[60:90]))
        usual = np.array([np.bincount(cell).argmax() for cell in cells[base].T])
        reads = [readout(features, cells, np.append(base, extra)) for extra in (seen, other)]
        groups = seen, unseen
        gains.append([[((read == cells) * 1.0 - (usual == cells))[of].mean() for of in groups] for read in reads])
    measured = np.array(gains)
    gain, truth = found(measured), measured[:, 1].mean()
    assert gain.leak.low > 0.01
    assert gain.pure.low < truth < gain.pure.high
    assert gain.naive.value - truth > 3 * abs(gain.pure.value - truth)
    bias = measured[:, 0].mean(1) - measured[:, 1].mean(1)
    assert stats.interval(bias[:, None], np.random.default_rng(0), stats.mean).low > 0.01


def readout(features: np.ndarray, cells: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The content of every cell of all frames, read by a ridge regression that was fitted to some."""
    x = (features - features[rows].mean(0)) / features[rows].std(0).clip(1e-6)
    wanted = np.eye(cells.max() + 1)[cells]
    mean = wanted[rows].mean(0)
    y = (wanted[rows] - mean).reshape(len(rows), -1)
    weights = np.linalg.solve(x[rows].T @ x[rows] + np.eye(x.shape[1]), x[rows].T @ y)
    return ((x @ weights).reshape(wanted.shape) + mean).argmax(-1)


def test_fewer_than_three_seeds_have_no_interval() -> None:
    gain = found(simulated(np.random.default_rng(0), 2))
    assert (gain.naive.low, gain.pure.low, gain.leak.high) == (None, None, None)


@pytest.mark.parametrize(
    ("gains", "overlap", "words"),
    [
        (np.zeros((3, 2)), PLAIN, r"gains \(3, 2\) and overlap \(2, 2\) do not fit"),
        (np.zeros((0, 2, 2)), PLAIN, "do not fit"),
        (np.full((3, 2, 2), np.nan), PLAIN, "gains must be finite"),
        (np.zeros((3, 2, 2)), 2 * PLAIN, r"shares in \[0, 1\]"),
        (np.zeros((3, 1, 2)), PLAIN[:1], "say nothing about a leak: measure a clean pretraining too"),
        (np.zeros((3, 2, 2)), np.array([[1, 1], [0, 0]]), "say nothing about a leak"),
        (np.zeros((3, 2)), np.array([0.5, 0.5]), "say nothing about a leak"),
    ],
)
def test_bad_input(gains: np.ndarray, overlap: np.ndarray, words: str) -> None:
    with pytest.raises(RlpreError, match=words):
        found(gains, overlap)
