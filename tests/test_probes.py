"""Linear probes, label curves, sparse probes and separation: by hand, on made-up features, and on an encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import norm

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.evaluation.probes import (
    COUNTS,
    FOLDS,
    Factor,
    cross_score,
    factors,
    fresh,
    label_efficiency,
    labelled_features,
    linear_probe,
    outcome,
    read,
    separation,
    sparsity,
)
from rlpre.objectives import make_reader
from tests.pixel_world import same, worlds

Array = np.ndarray
DIM = 32


def small(store: FrameStore) -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", InputSpec(store.space.shape), features=16)


def make_factor(labels: Array, groups: Array | None = None, quantity: bool = False) -> Factor:
    return Factor.from_labels("door", labels, groups, quantity)


def test_unknown_and_rare_labels_are_left_out() -> None:
    labels = np.array([-1] * 10 + [0] * 30 + [1] * 20 + [2] * 4)
    factor = make_factor(labels)
    assert factor.places.tolist() == list(range(10, 60))  # class 2 occurs four times
    assert factor.classes.tolist() == [0, 1]
    assert factor.chance == 0.5


@pytest.mark.parametrize(
    ("labels", "groups", "quantity", "message"),
    [
        (
            np.arange(39) % 2,
            None,
            False,
            "label 'door', where it is known and not rare, has too few different inputs .39.: a probe needs 40",
        ),
        (np.full(50, 3), None, False, "too few different values .1.: a probe needs 2"),
        (np.full(50, -1), None, False, "too few different inputs .0."),
        (
            np.repeat([0, 1], 30),
            np.append(np.arange(30), 30 + np.arange(30) % 2),
            False,
            "too few different inputs .30.",
        ),
        (np.arange(80), np.arange(80) % 4, True, "too few episodes .4.: a probe needs 5"),
    ],
)
def test_useless_labels_are_refused(labels: Array, groups: Array | None, quantity: bool, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        make_factor(labels, groups, quantity)


def test_folds_hold_out_whole_groups_and_every_class() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 300)
    factor = make_factor(groups % 3, groups)
    folds = factor.folds(seed=1)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(300))
    for train, test in folds:
        assert len(train) + len(test) == 300
        assert not set(groups[train]) & set(groups[test])
        assert set(factor.values[test]) == {0, 1, 2}
    assert not np.array_equal(folds[0][1], factor.folds(seed=2)[0][1])
    rare = make_factor(np.repeat([0, 1], [95, FOLDS]))
    assert [int(rare.values[test].sum()) for _, test in rare.folds()] == [1] * FOLDS  # one of the five in each


def test_scores_by_hand() -> None:
    classes = make_factor(np.repeat([0, 1], [30, 10]))
    answers = np.repeat([0, 1, 1], [24, 6, 10])  # 24 of 30 and 10 of 10
    assert classes.score(answers) == pytest.approx((0.8 + 1) / 2)
    assert classes.score(answers[20:35], np.arange(20, 35)) == pytest.approx((0.4 + 1) / 2)
    number = make_factor(np.tile([0, 1, 2, 3], 10), quantity=True)
    assert number.score(np.tile([0, 1, 2, 2], 10)) == pytest.approx(1 - 1 / 5)  # squares: 1 of 2.25 + .25 + .25 + 2.25
    assert number.score(np.full(40, 1.5)) == number.chance == 0


def test_broken_encoders_and_other_frames_are_refused(doorkey: FrameStore) -> None:
    encoder = small(doorkey)
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    with pytest.raises(RlpreError, match=r"the features of Encoder hold NaN or infinity in \d+ of \d+ rows"):
        linear_probe(encoder, make_reader(doorkey, encoder))
    other = Encoder("cnn", InputSpec((3, 36, 36)), features=16)
    with pytest.raises(RlpreError, match=r"does not fit .*: the observation shape is \(3, 56, 56\), the encoder was b"):
        read(other, make_reader(doorkey, other), np.arange(3))


def test_probes_of_an_encoder(doorkey: FrameStore, tmp_path: Path) -> None:
    encoder = small(doorkey)
    reader = make_reader(doorkey, encoder)
    rows, (front,) = factors(reader, ["front"])
    assert np.array_equal(front.values, doorkey.column("front")[rows[front.places]])
    assert len(np.unique(doorkey.ids[rows])) == len(rows)
    scores, labelled = linear_probe(encoder, reader), labelled_features(encoder, reader)
    assert set(scores) == set(labelled) >= {"front", "carrying", "distance"}
    assert scores == {name: cross_score(*each) for name, each in labelled.items()}
    x, front = labelled["front"]
    assert sparsity(x, front).dense == scores["front"]
    assert separation(x, front).keys() == set(front.classes)
    curve = label_efficiency(
        {"this": x, "other": read(fresh(encoder, 1), reader, rows)[front.places]}, front, counts=(10, 80)
    )
    assert curve.curve("this")[1].value > curve.curve("this")[0].value
    assert not np.array_equal(curve.scores["this"], curve.scores["other"])
    with pytest.raises(RlpreError, match="unknown label 'fron': did you mean 'front'"):
        factors(reader, ["fron"])
    with FrameStore.create(tmp_path, space=doorkey.space, action_space=spaces.Discrete(1), spec={}) as writer:
        columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "action": -1}
        writer.append(doorkey.frames([0]), episode_start=np.array([True]), **columns)
    bare = make_reader(FrameStore.open(tmp_path), encoder)
    with pytest.raises(RlpreError, match="cannot be probed: it has no labels"):
        factors(bare)
    assert linear_probe(encoder, bare) == {}


def test_outcomes_by_hand(tmp_path: Path) -> None:
    columns = {
        "reward": np.array([1, 0, -2, 0, 1, 5, 0], float),
        "terminated": np.arange(7) == 2,
        "truncated": np.zeros(7, bool),
        "action": np.array([0, 1, 0, -1, 1, 1, -1]),
        "episode_start": np.isin(np.arange(7), [0, 4]),  # the second one is cut
        "task": 0,
    }
    frames = np.random.default_rng(0).integers(0, 256, (7, 3, 56, 56), np.uint8)
    space = spaces.Box(0, 255, (3, 56, 56), np.uint8)
    with FrameStore.create(tmp_path, space=space, action_space=spaces.Discrete(2), spec={}) as writer:
        writer.append(frames, **columns)
    store = FrameStore.open(tmp_path)
    assert outcome(store, "action").tolist() == [0, 1, 0, -1, 1, 1, -1]
    assert outcome(store, "reward").tolist() == [2, 1, 0, -1, 2, 2, -1]
    assert outcome(store, "return") == pytest.approx([1 - 2 * 0.99**2, -2 * 0.99, -2, *[np.nan] * 4], nan_ok=True)


def test_outcomes_are_probed_in_every_store(tmp_path: Path) -> None:
    store = rlpre.collect(worlds(4, length=3), tmp_path, 400)
    encoder = Encoder("cnn", InputSpec(store.space.shape), features=16)
    reader = make_reader(store, encoder)
    assert linear_probe(encoder, reader).keys() == {"reward", "return"}
    _, (action, returns) = factors(reader, ["action", "return"])
    assert set(action.classes) == {0, 1, 2, 3}
    assert returns.quantity
    for train, test in returns.folds():
        assert not set(returns.groups[train]) & set(returns.groups[test]), "frames of one episode share its rewards"


def test_the_control_differs_in_weights_alone(doorkey: FrameStore) -> None:
    encoder, before = small(doorkey), torch.get_rng_state()
    control = fresh(encoder, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert control.config == encoder.config
    assert not same(control, encoder)
    assert same(control, fresh(encoder, seed=1))
    assert same(encoder.eval(), fresh(encoder))  # it was made with seed 0
    sequence = SequenceEncoder("gru", encoder, doorkey.num_actions, width=16)
    assert same(fresh(sequence, seed=1).frames, sequence.frames)
    assert not same(fresh(sequence, seed=1).stages, sequence.stages)


def gaussian(a: float, seed: int = 0, count: int = 3000) -> Array:
    """Nine features of classes 0 and 1 in turn, with signal a and noise 0.54; no feature has more signal."""
    sign = 2 * (np.arange(count) % 2) - 1
    return a / 3 * sign[:, None] + 0.54 * np.random.default_rng(seed).normal(size=(count, 9))


def expected_accuracy(strength: float, labels: int, dims: int) -> float:
    """Accuracy of the nearest class mean, whose direction has cosine 1 / sqrt(1 + (d - 1) / m s²) with the true one."""
    return float(norm.cdf(strength**2 / np.sqrt(strength**2 + (dims - 1) / labels))) if strength else 0.5


@pytest.fixture(scope="module")
def halves() -> Factor:
    return make_factor(np.arange(3000) % 2)


def test_the_stronger_signal_needs_fewer_labels(halves: Factor) -> None:
    """After 10 labels a = 1 is 95 % right, a = 0.6 80 %, less the cost of choosing the penalty with these labels."""
    sources = {"weak": gaussian(0.6), "strong": gaussian(1.0), "none": gaussian(0.0)}
    found = label_efficiency(sources, halves, threshold=0.85, seeds=6, counts=(10, 30, 100, 300, 1000))
    means = {name: [point.value for point in found.curve(name)] for name in sources}
    for name, a in (("weak", 0.6), ("strong", 1.0), ("none", 0.0)):
        expected = [expected_accuracy(a / 0.54, count, 9) for count in found.counts.tolist()]
        assert means[name] == pytest.approx(expected, abs=0.07)
    assert means["strong"][0] > 0.88 > 0.82 > means["weak"][0] > 0.72
    assert found.baseline == "weak"
    assert found.ratio("strong").ratio.low > 1
    assert (found.ratio("none").bound, found.ratio("none").treated_reached) == ("<=", 0)
    same = found.ratio("weak")
    assert (same.ratio.value, same.bound) == (1, "")


def test_seeds_draw_other_labels_and_too_few_give_no_interval(halves: Factor) -> None:
    found = label_efficiency({"one": gaussian(0.6), "other": gaussian(0.6)}, halves, counts=(10, 100), seeds=3)
    assert np.array_equal(found.scores["one"], found.scores["other"])
    assert len(np.unique(found.scores["one"][:, 0])) == 3
    assert found.threshold == pytest.approx(0.5 + 0.9 * (found.scores["one"][:, 1].mean() - 0.5))
    few = label_efficiency({"one": gaussian(0.6)}, halves, seeds=2, counts=(10, 100))
    assert [point.low for point in few.curve("one")] == [None, None]


def test_few_labels_show_all_classes() -> None:
    label = np.where(np.arange(2000) % 100, 0, 1 + np.arange(2000) // 100 % 2)  # 1980, 10 and 10
    features = np.eye(3)[label] + 0.01 * np.random.default_rng(0).normal(size=(2000, 3))
    found = label_efficiency({"symbols": features}, make_factor(label), counts=(6, 1000))
    assert found.chance == pytest.approx(1 / 3)
    assert found.scores["symbols"].min() == 1


def test_labels_that_the_baseline_cannot_read_give_no_ratio() -> None:
    rng = np.random.default_rng(0)
    factor = make_factor(np.round(rng.normal(30, 5, 800)), quantity=True)
    sources = {"noise": rng.normal(size=(800, 40)), "other": rng.normal(size=(800, 2)) * 1e-3}
    found = label_efficiency(sources, factor, seeds=3)
    assert found.threshold == np.inf
    assert not found.ratio("other").known


def test_quantities_are_scored_by_r2() -> None:
    features = np.random.default_rng(0).normal(size=(800, 6))
    factor = make_factor(np.round(30 + 5 * features[:, 2]), quantity=True)
    found = label_efficiency({"known": features}, factor)
    assert found.chance == 0
    assert found.counts.tolist() == [count for count in COUNTS if count <= 640]
    assert found.scores["known"][:, -1].min() > 0.98


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": (3000,)}, "label 'door' leaves 2400 labels to learn from: 3000 are the fewest needed"),
        ({"counts": (1, 10)}, "use increasing counts from 2 and at least 1 seed"),
        ({"counts": (30, 10)}, "use increasing counts from 2 and at least 1 seed"),
        ({"seeds": 0}, "use increasing counts from 2 and at least 1 seed"),
    ],
)
def test_bad_settings_of_label_curves(halves: Factor, settings: dict, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        label_efficiency({"scratch": gaussian(0.6)}, halves, **settings)


@pytest.fixture(scope="module")
def features() -> Array:
    return np.random.default_rng(0).normal(size=(600, DIM))


def test_a_label_in_one_feature_is_found_and_a_rotation_hides_it(features: Array) -> None:
    found = sparsity(features, make_factor((features[:, 5] > 0).astype(int)))
    assert (found.dim, found.chance, found.sizes[0], found.sizes[-1]) == (DIM, 0.5, 1, DIM)
    assert found.dense > 0.9
    assert found.smallest["features"] == 1
    assert found.scores["features"][0] > 0.98  # better than with all features, which add noise
    for hidden in ("rotated", "pca"):  # the components of isotropic features are a rotation, too
        assert (found.smallest[hidden] or DIM) >= 10
        assert found.scores[hidden][0] < 0.8
    spread = features + 3 * np.outer(features[:, 0], np.ones(DIM))  # one direction, in all features alike
    assert sparsity(spread, make_factor((features[:, 0] > 0).astype(int))).smallest["pca"] == 1


def test_classes_and_quantities_need_the_features_that_make_them(features: Array) -> None:
    quarter = 2 * (features[:, 3] > 0) + (features[:, 8] > 0)
    assert sparsity(features, make_factor(quarter)).smallest["features"] == 2
    steps = np.round(20 + 3 * features[:, [1, 2, 4]].sum(axis=1))
    found = sparsity(features, make_factor(steps, quantity=True))
    assert (found.smallest["features"], found.chance, found.dense > 0.98) == (3, 0, True)


def test_all_features_are_the_dense_probe_and_seeds_repeat(features: Array) -> None:
    rng = np.random.default_rng(1)
    noisy = features[:, 5] + features[:, 6] + rng.normal(size=600) > 0
    factor = make_factor(noisy.astype(int) + (rng.random(600) > 0.8))
    found = sparsity(features, factor, seed=3)
    assert found.scores["features"][-1] == pytest.approx(found.dense, abs=1e-9)
    assert found == sparsity(features, factor, seed=3)
    assert found != sparsity(features, factor, seed=4)


def test_nothing_is_found_in_noise_and_groups_are_held_out(features: Array) -> None:
    episode = np.arange(600) // 20
    coin = np.random.default_rng(2).integers(0, 2, 30)[episode]
    naming = np.hstack([features, np.random.default_rng(3).normal(size=(30, 8))[episode]])  # identifies the episode
    together, apart = make_factor(coin), make_factor(coin, episode)
    assert cross_score(naming, together) > 0.7
    assert cross_score(naming, apart) < 0.6
    curves = (
        label_efficiency({"naming": naming}, factor, counts=(300,)).curve("naming") for factor in (together, apart)
    )
    assert next(curves)[0].value > 0.7 > next(curves)[0].value
    noise = sparsity(features, make_factor(np.random.default_rng(5).integers(0, 2, 600)))
    assert set(noise.smallest.values()) == {None}


def test_constant_and_doubled_features_do_no_harm(features: Array) -> None:
    odd = np.hstack([features[:, :4], features[:, :4], np.ones((600, 2))])
    found = sparsity(odd, make_factor((features[:, 2] > 0).astype(int)))
    assert found.smallest["features"] == 1
    assert np.isfinite([score for scores in found.scores.values() for score in scores]).all()


def two_classes(a: float, sigma: float, dims: int, count: int) -> tuple[Array, Array]:
    """Features a y u + noise in a random direction u, and y in (-1, 1)."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=dims)
    y = rng.permutation(np.arange(count) % 2) * 2 - 1
    return a * y[:, None] * direction / np.linalg.norm(direction) + sigma * rng.normal(size=(count, dims)), y


@pytest.mark.parametrize(("a", "sigma"), [(0.6, 1.0), (1.0, 0.54), (0.0, 1.0)])
def test_separation_of_gaussian_classes(a: float, sigma: float) -> None:
    x, y = two_classes(a, sigma, dims=9, count=6000)
    factor = make_factor((y > 0).astype(int))
    assert separation(x, factor) == {1: pytest.approx(2 * a / sigma, abs=0.14)}
    assert cross_score(x, factor) == pytest.approx(norm.cdf(a / sigma), abs=0.02)
    kept = (y < 0) | (np.arange(6000) % 10 == 0)  # rare classes count like frequent ones
    assert separation(x[kept], make_factor((y[kept] > 0).astype(int))) == {1: pytest.approx(2 * a / sigma, abs=0.24)}


def test_of_many_classes_each_is_compared_with_the_others() -> None:
    label = np.arange(3000) % 3
    x = np.random.default_rng(0).normal(size=(3000, 5))
    x[:, 0] += 20.0 * (label == 2)
    found = separation(x, make_factor(label))
    assert list(found) == [0, 1, 2]
    assert found[2] == pytest.approx(20, rel=0.05)
    # 0 against 1 and 2: the best direction separates 2, so the spread of the others hides that 0 and 1 are alike
    assert found[0] < 2


def test_separation_is_held_out_and_of_classes() -> None:
    x, y = two_classes(0.0, 1.0, dims=60, count=100)  # separable by chance where it was fitted
    assert abs(separation(x, make_factor((y > 0).astype(int)))[1]) < 0.8
    with pytest.raises(RlpreError, match="label 'door' is a quantity, but separation is that of classes"):
        separation(x, make_factor(np.arange(100), quantity=True))
