"""Objectives: reference formulas, invariants, and that each can be learned."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.augment import random_shift
from rlpre.measure.health import alignment, effective_rank, uniformity
from rlpre.objectives import OBJECTIVES, Batch, Views, draw_batch, make_objective, parse_objective
from rlpre.objectives.info_nce import info_nce
from rlpre.objectives.jigsaw import Jigsaw, far_permutations

CPU = torch.device("cpu")


@pytest.fixture
def encoder(doorkey: FrameStore) -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", InputSpec(doorkey.space.shape), features=64)


@pytest.fixture
def batch(doorkey: FrameStore) -> Batch:
    return draw_batch(doorkey, doorkey.pairs(5), 64, np.random.default_rng(0), CPU)


def test_random_shift_moves_each_frame_by_its_own_whole_pixels() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (64, 3, 9, 12), dtype=torch.uint8)
    padded = F.pad(frames.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    found = set()
    for shifted, around in zip(random_shift(frames, pad=2), padded, strict=True):
        hits = [(y, x) for y in range(5) for x in range(5) if torch.equal(around[:, y : y + 9, x : x + 12], shifted)]
        assert hits
        found.add(hits[0])
    assert len(found) > 15  # of 25 shifts in 64 draws


def test_info_nce_is_cross_entropy_over_cosines_when_nothing_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, 5, generator=generator)
    cosine = F.cosine_similarity(query[:, None], key[None], dim=2) / 0.1
    expected = -(cosine.diagonal() - cosine.logsumexp(1)).mean()
    loss, _ = info_nce(query, key, torch.arange(8), torch.arange(8) + 8)
    torch.testing.assert_close(loss, expected)


def test_identical_frames_are_no_negatives() -> None:
    # three queries; key 1 shows the frame of key 0, key 2 shows the frame of query 1
    query, key = torch.eye(3), torch.eye(3)
    loss, _ = info_nce(query, key, torch.tensor([10, 11, 12]), torch.tensor([7, 7, 11]), temperature=1.0)
    one_negative = -math.log(math.e / (math.e + 1))  # own key at cosine 1, one other at 0
    none = 0.0  # query 1: key 0 repeats its own key, key 2 repeats the query
    two = -math.log(math.e / (math.e + 2))
    assert float(loss) == pytest.approx((one_negative + none + two) / 3, abs=1e-6)


def test_far_permutations() -> None:
    assert len(far_permutations(4, 64)) == 24
    chosen = far_permutations(9, 64)
    distance = (chosen[:, None] != chosen[None]).sum(2)[~np.eye(len(chosen), dtype=bool)]
    assert len(chosen) == 64
    assert distance.min() >= 6  # random permutations of 9 come as near as 2
    assert all(sorted(order) == list(range(9)) for order in chosen.tolist())


def test_jigsaw_shows_every_tile_and_accepts_every_order_that_looks_right(doorkey, encoder, batch) -> None:
    torch.manual_seed(0)
    jigsaw = Jigsaw(encoder, doorkey)
    puzzles, right = jigsaw.puzzles(batch.anchor)
    assert puzzles.shape == batch.anchor.shape
    assert right.any(1).all()
    flat = torch.full_like(batch.anchor, 9)
    assert jigsaw.puzzles(flat)[1].all()  # all tiles alike: every order is right
    noise = torch.randint(0, 256, batch.anchor.shape, dtype=torch.uint8)
    assert (jigsaw.puzzles(noise)[1].sum(1) == 1).all()  # all tiles differ: one order is right


def test_jigsaw_tiles_all_have_the_same_grid_phase(doorkey, encoder) -> None:
    """The shortcut: if tiles were cut off the grid, the phase of the grid lines alone would tell their place."""
    jigsaw = Jigsaw(encoder, doorkey)
    size = doorkey.cell
    rows = torch.arange(doorkey.space.shape[1]) % size
    phase = (rows[:, None] * size + rows[None, :]).to(torch.uint8).expand(32, 3, -1, -1)
    tiles, right = jigsaw._shuffle(phase.contiguous())
    assert (tiles == tiles[:, :1]).all()
    assert right.all()


def test_jigsaw_places_move(doorkey, encoder) -> None:
    jigsaw = Jigsaw(encoder, doorkey)
    cells = torch.arange(7, dtype=torch.uint8).repeat_interleave(doorkey.cell)
    places = jigsaw._cut(cells.expand(200, 3, 56, 56).contiguous())[:, 1, 0, 0, 0]
    assert len(places.unique()) > 1


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_each_objective_can_be_learned(name: str, doorkey: FrameStore, encoder: Encoder, batch: Batch) -> None:
    torch.manual_seed(0)
    objective = make_objective(name, encoder, doorkey)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], lr=1e-3)
    losses = []
    for _ in range(60):
        loss, metrics = objective(Views(encoder, batch))
        assert 0 <= float(metrics[f"{name}/accuracy"]) <= 1
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])


def test_combinations_are_weighted_sums_on_views_encoded_once(doorkey, encoder, batch) -> None:
    torch.manual_seed(0)
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    objective = make_objective("temporal:2+inverse:0.5", encoder, doorkey)
    loss, metrics = objective(Views(encoder, batch))
    assert len(calls) == 2  # anchor and later, shared
    temporal, inverse = float(metrics["temporal/loss"]), float(metrics["inverse/loss"])
    assert float(loss.detach()) == pytest.approx(2 * temporal + 0.5 * inverse)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("temporl", "unknown objective 'temporl': did you mean 'temporal'"),
        ("temporal+temporal", "stands twice"),
        ("temporal:-1", "not a positive number"),
        ("temporal:x", "not a positive number"),
    ],
)
def test_wrong_objectives_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        parse_objective(text)


def test_health_by_hand() -> None:
    axes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert alignment(axes, axes) == 0
    assert alignment(axes, axes.flip(0)) == pytest.approx(2)
    assert uniformity(axes) == pytest.approx(-4)  # one pair at squared distance 2: log exp(-2 * 2)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0)
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    constant = torch.ones(128, 64) + 1e-3 * torch.randn(128, 64, generator=torch.Generator().manual_seed(0))
    assert effective_rank(constant) < 1.2  # useless, though nearly full-ranked once centred
