"""Health of features: numbers by hand, and a name for each collapse."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.evaluation.health import Health, collapse_cause, conditioning, effective_rank, encoder_health, health
from rlpre.evaluation.probes import fresh
from rlpre.objectives import make_reader

N, DIM = 200, 16


def noise(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))


def measured(features: Tensor) -> Health:
    return health(features, features[:9], features[:9])


def test_numbers_by_hand() -> None:
    axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = health(3 * axes, axes, -axes)
    pairs = 2 * math.exp(-8) + 4 * math.exp(-4)  # two at squared distance 4, four at 2
    assert found.uniformity == pytest.approx(math.log(pairs / 6))
    assert found.alignment == 4
    assert found.effective_rank == found.centred_rank == pytest.approx(2)
    assert found.spread == pytest.approx(math.sqrt(2 / 3) * math.sqrt(2))  # variances are 2 / (4 - 1)
    assert (found.dead, found.inputs, found.dim) == (0, 4, 2)
    assert measured(torch.cat([noise(), torch.ones(N, DIM)], dim=1)).dead == 0.5
    stretched = torch.cat([3 * axes[:, :1], axes[:, 1:], torch.ones(4, 1)], dim=1)
    found = conditioning(stretched)
    assert (found.number, found.dimensions) == (pytest.approx(9), 2)
    assert conditioning(torch.ones(4, 2)).number == math.inf


def test_scale_does_not_matter_and_a_constant_does() -> None:
    """A constant beside the features shows in all measures except the centred rank."""
    plain, larger, lifted = (measured(features) for features in (noise(), 1000 * noise(), noise() + 30))
    assert larger.spread == pytest.approx(plain.spread)
    assert larger.effective_rank == pytest.approx(plain.effective_rank)
    assert plain.spread == pytest.approx(1, abs=0.05)
    assert lifted.spread < 0.05
    assert lifted.effective_rank < 5 < 15 < lifted.centred_rank


@pytest.mark.parametrize(
    ("features", "cause"),
    [
        (noise(), None),
        (noise() + 1, None),
        (noise() @ torch.diag(torch.linspace(0.2, 1, DIM)), None),
        (torch.ones(N, DIM), "complete collapse"),
        (1 + 0.01 * noise()[:, :1] * torch.linspace(-1, 1, DIM), "complete collapse"),
        (1 + noise(1e-3), "constant and noise"),
        (noise()[:, :2] @ torch.eye(2, DIM), "dimensional collapse"),
        (noise() @ torch.ones(DIM, DIM) + noise(1e-3), "dimensional collapse"),
    ],
)
def test_each_collapse_has_its_name(features: Tensor, cause: str | None) -> None:
    control = measured(noise() + 0.5)
    assert collapse_cause(measured(features), control) == cause
    assert collapse_cause(replace(measured(features), inputs=7), control) is None  # too few


def test_collapse_is_relative_to_fresh_weights_except_for_a_constant() -> None:
    noisy = measured(1 + noise(1e-3))
    assert noisy.centred_rank > 0.95 * DIM
    assert effective_rank(1 + noise(1e-3)) < 1.1
    assert collapse_cause(noisy, noisy) == "constant and noise"
    flat = measured(noise()[:, :2] @ torch.eye(2, DIM) + 1)
    assert collapse_cause(flat, flat) is None


def test_encoders_of_either_kind_are_measured_before_their_standardisation(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    vision = Encoder("cnn", InputSpec(doorkey.space.shape), features=32)
    for encoder in (vision, SequenceEncoder("gru", vision, doorkey.num_actions, width=16, window=4)):
        reader = make_reader(doorkey, encoder)
        before, state = encoder_health(encoder, reader), torch.get_rng_state()
        assert before.dim == encoder.num_features
        assert before.inputs > 100
        assert 0 < before.alignment < 4
        assert collapse_cause(before, encoder_health(fresh(encoder), reader)) is None
        encoder.standardise(reader.encode(encoder, reader.distinct(np.arange(len(doorkey)))))
        after = encoder_health(encoder, reader)
        assert after.spread == pytest.approx(before.spread, abs=1e-3)
        assert after.effective_rank == pytest.approx(before.effective_rank, abs=0.1)
        assert encoder.training
        assert torch.equal(state, torch.get_rng_state())


def test_bad_input() -> None:
    with pytest.raises(RlpreError, match=r"health is measured over different inputs, there are 1: give at least 2"):
        measured(noise()[:1])
    broken = noise()
    broken[3, 0] = math.nan
    with pytest.raises(RlpreError, match=r"the features to measure hold NaN or infinity in 1 of 200 rows \(first: row"):
        measured(broken)
