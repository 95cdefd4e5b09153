"""Health of features: numbers by hand, and each collapse by its name."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.measure.health import Health, diagnose, effective_rank, encoder_health, health
from rlpre.measure.probe import fresh
from rlpre.objectives import FrameReader, WindowReader

CPU = torch.device("cpu")
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
    wide = measured(torch.cat([noise(), torch.ones(N, DIM)], dim=1))
    assert wide.dead == 0.5


def test_what_does_not_matter_and_what_does() -> None:
    """Scale is no matter; a constant beside the features shows in all but the centred rank."""
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
    assert diagnose(measured(features), control) == cause
    assert diagnose(replace(measured(features), inputs=7), control) is None  # too few to tell


def test_noise_on_a_constant_fools_the_centred_rank_and_its_own_control() -> None:
    noisy = measured(1 + noise(1e-3))
    assert noisy.centred_rank > 0.95 * DIM
    assert effective_rank(1 + noise(1e-3)) < 1.1
    assert diagnose(noisy, noisy) == "constant and noise"


def test_low_rank_is_no_collapse_where_fresh_weights_have_no_more() -> None:
    flat = measured(noise()[:, :2] @ torch.eye(2, DIM) + 1)
    assert diagnose(flat, flat) is None


def test_encoders_of_either_kind_are_measured_before_their_standardisation(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    vision = Encoder("cnn", InputSpec(doorkey.space.shape), features=32)
    sequence = SequenceEncoder("gru", vision, doorkey.num_actions, width=16, window=4)
    for encoder, reader in (
        (vision, FrameReader(doorkey, vision, None, CPU)),
        (sequence, WindowReader(doorkey, sequence, None, CPU)),
    ):
        before, state = encoder_health(encoder, reader), torch.get_rng_state()
        assert before.dim == encoder.num_features
        assert before.inputs > 100
        assert 0 < before.alignment < 4
        assert diagnose(before, encoder_health(fresh(encoder), reader)) is None
        encoder.standardise(reader.encode(encoder, reader.distinct(torch.arange(len(doorkey)).numpy())))
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
    with pytest.raises(RlpreError, match=r"the features to measure hold NaN or infinity in 1 of 200 rows"):
        measured(broken)
