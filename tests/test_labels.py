"""Label-efficiency curves: paired draws, few labels of every class, ratios, and what is said with too few seeds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.measure.labels import COUNTS, label_curves, label_efficiency
from rlpre.measure.probe import Factor, factor, fresh
from rlpre.measure.signal import expected_accuracy
from rlpre.objectives import FrameReader
from rlpre.report.probes import draw_label_curves, label_rows


def gaussian(a: float, seed: int = 0, count: int = 3000) -> np.ndarray:
    """Nine features of classes 0 and 1 in turn, a signal of a and noise of 0.54: no feature has more signal."""
    sign = 2 * (np.arange(count) % 2) - 1
    return a / 3 * sign[:, None] + 0.54 * np.random.default_rng(seed).normal(size=(count, 9))


@pytest.fixture(scope="module")
def halves() -> Factor:
    return factor("half", np.arange(3000) % 2)


def test_the_stronger_signal_needs_fewer_labels(halves: Factor) -> None:
    """After 10 labels a = 1 is 95 % right, a = 0.6 80 %, less what it costs to choose the strength of ridge by them."""
    sources = {"weak": gaussian(0.6), "strong": gaussian(1.0), "none": gaussian(0.0)}
    found = label_curves(sources, halves, threshold=0.85, seeds=6, counts=(10, 30, 100, 300, 1000))
    means = {name: [point.value for point in curve.curve] for name, curve in found.curves.items()}
    for name, a in (("weak", 0.6), ("strong", 1.0), ("none", 0.0)):
        expected = [expected_accuracy(a / 0.54, count, 9) for count in found.counts.tolist()]
        assert means[name] == pytest.approx(expected, abs=0.07)
    assert means["strong"][0] > 0.88 > 0.82 > means["weak"][0] > 0.72
    weak, strong, none = found.curves.values()
    assert found.baseline == "weak"
    assert weak.ratio is None
    assert strong.labels.value < weak.labels.value
    assert strong.ratio is not None
    assert strong.ratio.ratio.value == pytest.approx(weak.labels.value / strong.labels.value)
    assert strong.ratio.ratio.low > 1
    assert (none.reached, none.labels.value) == (0, 1000)  # all it had
    assert none.ratio is not None
    assert none.ratio.bound == "<="
    assert strong.area.value > weak.area.value > none.area.value == pytest.approx(0.5, abs=0.02)


def test_the_same_features_are_alike_and_seeds_differ(halves: Factor) -> None:
    found = label_curves({"one": gaussian(0.6), "other": gaussian(0.6)}, halves, counts=(10, 100), seeds=3)
    one, other = found.curves.values()
    assert np.array_equal(one.scores, other.scores)
    assert other.ratio is not None
    assert (other.ratio.ratio.value, other.ratio.bound) == (1, "")
    assert len(np.unique(one.scores[:, 0])) == 3
    assert found.threshold == pytest.approx(0.5 + 0.9 * (one.scores[:, 1].mean() - 0.5))
    # the mean height between the two points, on the logarithm of the labels
    assert one.area.value == pytest.approx(one.scores.mean())


def test_few_labels_show_all_classes() -> None:
    label = np.where(np.arange(2000) % 100, 0, 1 + np.arange(2000) // 100 % 2)  # 1980, 10 and 10
    features = np.eye(3)[label] + 0.01 * np.random.default_rng(0).normal(size=(2000, 3))
    found = label_curves({"symbols": features}, factor("rare", label), counts=(6, 1000))
    assert found.chance == pytest.approx(1 / 3)
    assert found.curves["symbols"].scores.min() == 1


def test_groups_are_held_out() -> None:
    episode = np.arange(1000) // 25
    label = np.random.default_rng(0).integers(0, 2, 40)[episode]
    naming = np.random.default_rng(1).normal(size=(40, 60))[episode]  # what is seen in all of an episode
    together, apart = (
        label_curves({"naming": naming}, factor("coin", label, groups), counts=(300,)).curves["naming"]
        for groups in (None, episode)
    )
    assert together.curve[0].value > 0.9
    assert apart.curve[0].value < 0.7


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_give_no_interval_and_it_says_so(halves: Factor, seeds: int, tmp_path: Path) -> None:
    found = label_curves({"scratch": gaussian(0.6), "mine": gaussian(1.0)}, halves, seeds=seeds, counts=(10, 100))
    for curve in found.curves.values():
        assert [point.low for point in (*curve.curve, curve.area, curve.labels)] == [None] * 4
    assert "(n<3)" in label_rows({"half": found})[2][-1]
    draw_label_curves({"half": found}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_quantities_are_scored_by_r2() -> None:
    features = np.random.default_rng(0).normal(size=(800, 6))
    steps = np.round(30 + 5 * features[:, 2])
    found = label_curves({"known": features}, factor("steps", steps, quantity=True))
    assert found.chance == 0
    assert found.counts.tolist() == [count for count in COUNTS if count <= 640]
    assert found.curves["known"].scores[:, -1].min() > 0.98


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": (3000,)}, "label 'half' leaves 2400 labels to learn from: 3000 are the fewest asked for"),
        ({"counts": (1, 10)}, "use increasing counts from 2 and at least 1 seed"),
        ({"counts": (30, 10)}, "use increasing counts from 2 and at least 1 seed"),
        ({"seeds": 0}, "use increasing counts from 2 and at least 1 seed"),
        ({"baseline": "scrach"}, "unknown source of features 'scrach': did you mean 'scratch'"),
    ],
)
def test_bad_settings(halves: Factor, settings: dict, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        label_curves({"scratch": gaussian(0.6)}, halves, **settings)


def test_encoders_of_doorkey(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(doorkey.space.shape), features=16)
    reader = FrameReader(doorkey, encoder, None, torch.device("cpu"))
    sources = {"scratch": encoder, "again": fresh(encoder), "other": fresh(encoder, seed=1)}
    found = label_efficiency(sources, reader, ["front"], counts=(10, 80))["front"]
    scratch, again, other = found.curves.values()
    assert np.array_equal(scratch.scores, again.scores)  # weights of one seed, shown the same labels
    assert not np.array_equal(scratch.scores, other.scores)
    assert scratch.curve[1].value > scratch.curve[0].value
    assert [row[:2] for row in label_rows({"front": found})[1:]] == [["front", name] for name in sources]
