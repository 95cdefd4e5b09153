"""Objectives: reference formulas, invariants, and that each can be learned."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional as F

from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.augment import random_shift
from rlpre.measure.health import alignment, effective_rank, uniformity
from rlpre.objectives import OBJECTIVES, Batch, Views, draw_batch, make_objective, parse_objective
from rlpre.objectives.base import Slow
from rlpre.objectives.forward import Forward, decorrelation
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


def dot_world(path: Path, action_space: spaces.Space | None) -> FrameStore:
    """A walk of a dot on a 4 x 4 torus: by four moves, by vectors (then it stays inside), or by nobody knows what."""
    rng = np.random.default_rng(0)
    rows = 1500
    moves = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])
    action = rng.integers(4, size=rows)
    place = 9 * (np.cumsum([(0, 0), *moves[action[:-1]]], axis=0) % 4)
    action[-1] = -1
    if isinstance(action_space, spaces.Box):
        place = rng.integers(0, 28, (rows, 2))
        action = np.vstack([np.diff(place, axis=0) * (10, 0.1), [np.nan] * 2]).astype(np.float32)
    frames = np.zeros((rows, 1, 36, 36), np.uint8)
    for frame, (top, left) in zip(frames, place, strict=True):
        frame[0, top : top + 9, left : left + 9] = 255
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0}
    with FrameStore.create(path, space=space, action_space=action_space, spec={}) as writer:
        chosen = -1 if action_space is None else action
        writer.append(frames, action=chosen, episode_start=np.arange(rows) == 0, **columns)
    return FrameStore.open(path)


def image_store(path: Path) -> FrameStore:
    """Twenty images that have nothing to do with each other."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 1, 36, 36), np.uint8)
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "action": -1, "episode_start": True}
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    with FrameStore.create(path, space=space, action_space=None, spec={}) as writer:
        writer.append(frames, **columns)
    return FrameStore.open(path)


def learn(objective: str, frames: FrameStore, steps: int, k: int, **settings: float) -> tuple[Encoder, Forward, Batch]:
    """Trains one objective for some steps; returns encoder, objective and the last batch."""
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(frames.space.shape), features=32)
    objectives = make_objective(objective, encoder, frames)
    part = objectives.objectives[objective]
    for name, value in settings.items():
        setattr(part, name, value)
    optimizer = torch.optim.Adam(
        [weight for weight in [*encoder.parameters(), *part.parameters()] if weight.requires_grad], lr=3e-3
    )
    rng, pairs = np.random.default_rng(0), frames.pairs(k)
    for _ in range(steps):
        batch = draw_batch(frames, pairs, 64, rng, CPU)
        loss, _ = objectives(Views(encoder, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objectives.after_step(encoder)
    return encoder, part, batch


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


@pytest.mark.parametrize("name", sorted(name for name, kind in OBJECTIVES.items() if kind.kind == "vision"))
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


def test_forward_learns_where_actions_lead_and_does_not_collapse(tmp_path: Path) -> None:
    frames = dot_world(tmp_path, spaces.Discrete(4))
    encoder, forward, batch = learn("forward", frames, 110, k=2)
    with torch.no_grad():
        _, own = forward(Views(encoder, batch))
        _, shuffled = forward(Views(encoder, dataclasses.replace(batch, actions=batch.actions.roll(1, 0))))
        spread = effective_rank(forward.projector(encoder(batch.anchor)))
    assert own["accuracy"] > 0.7  # of 16 places
    assert shuffled["accuracy"] < 0.4
    encoder, alone, batch = learn("forward", frames, 110, k=2, weight=0.0)
    with torch.no_grad():
        collapsed = effective_rank(alone.projector(encoder(batch.anchor)))
    assert spread > 1.4 * collapsed  # 16 places span 15 dimensions


def test_forward_stops_at_the_gap(doorkey: FrameStore, encoder: Encoder, batch: Batch) -> None:
    torch.manual_seed(0)
    forward = Forward(encoder, doorkey)
    latent = torch.randn(64, 64)
    ahead = forward.unroll(latent, batch.actions, batch.gap)
    beyond = torch.where(batch.actions < 0, 1, batch.actions)  # what stands beyond the gap is not looked at
    torch.testing.assert_close(forward.unroll(latent, beyond, batch.gap), ahead)
    assert torch.equal(forward.unroll(latent, batch.actions, 0 * batch.gap), latent)
    first = batch.gap == 1
    expected = latent + forward.move(F.relu(forward.look(latent) * forward.act(F.one_hot(batch.action, 7).float())))
    torch.testing.assert_close(ahead[first], expected[first])
    assert first.any()
    assert not first.all()


def test_decorrelation_by_hand() -> None:
    axis = torch.tensor([1.0, -1.0, 1.0, -1.0])
    other = torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert float(decorrelation(torch.stack([3 * axis, other + 7], 1))) == pytest.approx(0, abs=1e-6)
    assert float(decorrelation(torch.stack([axis, -2 * axis], 1))) == pytest.approx(1)  # two pairs at -1, two columns
    assert float(decorrelation(torch.stack([axis, axis, axis, other], 1))) == pytest.approx(6 / 4)


def test_slow_copies_follow_and_are_never_optimised() -> None:
    fast = torch.nn.BatchNorm1d(2)
    slow = Slow(fast)
    assert not [weight for weight in slow.parameters() if weight.requires_grad]
    with torch.no_grad():
        fast.weight.fill_(2.0)
    fast(torch.tensor([[0.0, 4.0], [2.0, 4.0]]))
    slow.follow(fast)
    (copied,) = slow.copies
    torch.testing.assert_close(copied.weight, torch.full((2,), 1.01))
    assert torch.equal(copied.running_mean, fast.running_mean)
    assert torch.equal(fast.weight, torch.full((2,), 2.0))


def test_vectors_as_actions_are_regressed_whatever_their_scale(tmp_path: Path) -> None:
    frames = dot_world(tmp_path, spaces.Box(-400, 400, (2,), np.float32))
    encoder, inverse, batch = learn("inverse", frames, 50, k=1)
    assert batch.action.shape == (64, 2)
    with torch.no_grad():
        _, metrics = inverse(Views(encoder, batch))
        answer = inverse.code(batch.actions)
    assert metrics["r2"] > 0.5
    assert 0.7 < float(answer.std()) < 1.3  # standardised, though one axis is 100 times the other
    _, forward, _ = learn("forward", frames, 2, k=3)
    assert forward.code.size == 2


def test_what_frames_lack_is_refused_by_name(tmp_path: Path) -> None:
    film = dot_world(tmp_path / "film", None)
    images = image_store(tmp_path / "images")
    encoder = Encoder("cnn", InputSpec((1, 36, 36)), features=16)
    make_objective("temporal+contrastive+jigsaw", encoder, film)
    assert make_objective("contrastive+jigsaw", encoder, images).single
    for objective in ("inverse", "forward"):
        with pytest.raises(RlpreError, match=f"'{objective}' learns from actions, but .*film holds frames without act"):
            make_objective(f"temporal+{objective}", encoder, film)
    with pytest.raises(RlpreError, match=r"'temporal' learns from pairs, but .*images holds single images: use con"):
        make_objective("contrastive+temporal", encoder, images)


def test_single_frames_are_pairs_with_themselves(tmp_path: Path) -> None:
    images = image_store(tmp_path)
    batch = draw_batch(images, None, 16, np.random.default_rng(0), CPU)
    assert batch.anchor is batch.later
    assert batch.actions.shape == (16, 0)
    assert not batch.gap.any()
    assert torch.equal(batch.anchor_id, batch.later_id)


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
