"""Sparse probes find how many features a factor needs, and that a rotation hides it."""

import numpy as np
import pytest
import torch

from rlpre import Encoder, FrameStore, InputSpec
from rlpre.measure.probe import factor, linear_probe
from rlpre.measure.sparse import sparse_probe, sparsity
from rlpre.objectives import FrameReader
from rlpre.report.probes import sparse_rows

DIM = 32


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(600, DIM))


def test_a_factor_in_one_feature_is_found_and_a_rotation_hides_it(features: np.ndarray) -> None:
    found = sparsity(features, factor("sign", (features[:, 5] > 0).astype(int)))
    assert (found.dim, found.chance, found.sizes[0], found.sizes[-1]) == (DIM, 0.5, 1, DIM)
    assert found.dense > 0.9
    assert found.smallest["features"] == 1
    assert found.scores["features"][0] > 0.98  # better than with all: nothing is left to be misled by
    for hidden in ("rotated", "pca"):  # of isotropic features the components are a rotation, too
        assert (found.smallest[hidden] or DIM) >= 10
        assert found.scores[hidden][0] < 0.8


def test_classes_and_quantities_need_the_features_that_make_them(features: np.ndarray) -> None:
    quarter = 2 * (features[:, 3] > 0) + (features[:, 8] > 0)
    assert sparsity(features, factor("quarter", quarter)).smallest["features"] == 2
    steps = np.round(20 + 3 * features[:, [1, 2, 4]].sum(axis=1))
    found = sparsity(features, factor("steps", steps, quantity=True))
    assert found.smallest["features"] == 3
    assert (found.chance, found.dense > 0.98) == (0, True)


def test_principal_components_find_what_varies_most(features: np.ndarray) -> None:
    spread = features + 3 * np.outer(features[:, 0], np.ones(DIM))  # one direction, in all features alike
    found = sparsity(spread, factor("sign", (features[:, 0] > 0).astype(int)))
    assert found.smallest["pca"] == 1


def test_all_features_are_the_dense_probe_and_seeds_repeat(features: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    of = factor(
        "noisy", (features[:, 5] + features[:, 6] + rng.normal(size=600) > 0).astype(int) + (rng.random(600) > 0.8)
    )
    found = sparsity(features, of, seed=3)
    assert found.scores["features"][-1] == pytest.approx(found.dense, abs=1e-9)  # scikit-learn's ridge
    assert found == sparsity(features, of, seed=3)
    assert found != sparsity(features, of, seed=4)


def test_nothing_is_found_in_noise_and_groups_are_held_out(features: np.ndarray) -> None:
    episode = np.arange(600) // 20
    coin = np.random.default_rng(2).integers(0, 2, 30)[episode]
    one = np.hstack(
        [features, np.random.default_rng(3).normal(size=(30, 8))[episode]]
    )  # features that name the episode
    leaked = sparsity(one, factor("coin", coin))
    assert leaked.dense > 0.7
    apart = sparsity(one, factor("coin", coin, episode))
    assert apart.dense < 0.6
    noise = sparsity(features, factor("coin", np.random.default_rng(5).integers(0, 2, 600)))
    assert set(noise.smallest.values()) == {None}
    assert "- of 32" in sparse_rows({"coin": noise})[1]


def test_constant_and_doubled_features_do_no_harm(features: np.ndarray) -> None:
    odd = np.hstack([features[:, :4], features[:, :4], np.ones((600, 2))])
    found = sparsity(odd, factor("sign", (features[:, 2] > 0).astype(int)))
    assert found.smallest["features"] == 1
    assert np.isfinite([score for scores in found.scores.values() for score in scores]).all()


def test_an_encoder_of_doorkey(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(doorkey.space.shape), features=16)
    reader = FrameReader(doorkey, encoder, None, torch.device("cpu"))
    found, dense = sparse_probe(encoder, reader, ["front", "carrying"]), linear_probe(encoder, reader)
    assert {name: of.dense for name, of in found.items()} == {name: dense[name] for name in ("front", "carrying")}
    assert [row[0] for row in sparse_rows(found)] == ["label", "front", "carrying"]
