"""Objectives: reference formulas, invariants, and that each can be learned."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_world import worlds
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.evaluation.health import effective_rank
from rlpre.objectives import OBJECTIVES, Objective, make_objective, parse_objective, register_objective
from rlpre.objectives.base import TargetNetworks
from rlpre.objectives.batches import Batch, FrameReader, FrameViews
from rlpre.objectives.forward import Forward, decorrelation
from rlpre.objectives.jigsaw import Jigsaw, assemble, ordered_permutations
from rlpre.objectives.losses import info_nce, random_shift
from rlpre.objectives.symbols import BACKGROUND, BINS, CLASSES, LOGITS, label_edges
from rlpre.pretrain import Pretext


@pytest.fixture
def encoder(doorkey: FrameStore) -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", InputSpec(doorkey.space.shape), features=64)


@pytest.fixture
def batch(doorkey: FrameStore, encoder: Encoder) -> Batch:
    return FrameReader(doorkey, encoder, gap=5).draw(64, np.random.default_rng(0))


def dot_world(path: Path, actions: str | None) -> FrameStore:
    """A dot moves on a 4 x 4 torus by four "moves"; or anywhere by "vectors"; or nothing is known of actions."""
    rng, rows = np.random.default_rng(0), 1500
    moves = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])
    action = rng.integers(4, size=rows)
    place = 9 * (np.cumsum([(0, 0), *moves[action[:-1]]], axis=0) % 4)
    action[-1] = -1
    if actions == "vectors":
        place = rng.integers(0, 28, (rows, 2))
        action = np.vstack([np.diff(place, axis=0) * (10, 0.1), [np.nan] * 2]).astype(np.float32)
    frames = np.zeros((rows, 36, 36), np.uint8)
    for frame, (top, left) in zip(frames, place, strict=True):
        frame[top : top + 9, left : left + 9] = 255
    return rlpre.from_arrays(frames, path, action=action if actions else None, episode_start=np.arange(rows) == 0)


def train(name: str, encoder: Encoder, frames: FrameStore, batches: Iterable[Batch], rate: float, **settings: float):
    """Trains with one objective; returns it, and the metrics of each batch."""
    torch.manual_seed(0)
    model = Pretext(encoder, make_objective(name, encoder, frames))
    (part,) = model.objective.objectives.values()
    for setting, value in settings.items():
        setattr(part, setting, value)
    optimizer, history = torch.optim.Adam([w for w in model.parameters() if w.requires_grad], lr=rate), []
    for batch in batches:
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        part.after_step(encoder)
        history.append({key: float(value) for key, value in metrics.items()})
    return part, history


def learn(name: str, frames: FrameStore, steps: int, gap: int, **settings: float) -> tuple[Encoder, Objective, Batch]:
    """Trains a fresh encoder with one objective; returns encoder, objective and the last batch."""
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(frames.space.shape), features=32)
    reader, rng = FrameReader(frames, encoder, gap), np.random.default_rng(0)
    batches = [reader.draw(64, rng) for _ in range(steps)]
    return encoder, train(name, encoder, frames, batches, 3e-3, **settings)[0], batches[-1]


def test_random_shift_moves_each_frame_by_its_own_whole_pixels() -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (64, 3, 9, 12), dtype=torch.uint8)
    padded = F.pad(frames.float(), (2, 2, 2, 2), mode="replicate").to(torch.uint8)
    found = set()
    for shifted, around in zip(random_shift(frames, pad=2), padded, strict=True):
        hits = [(y, x) for y in range(5) for x in range(5) if torch.equal(around[:, y : y + 9, x : x + 12], shifted)]
        found.add(hits[0])
    assert len(found) > 15  # of 25 shifts in 64 draws


def test_info_nce_is_cross_entropy_over_cosines_without_identical_frames() -> None:
    query, key = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    cosine = F.cosine_similarity(query[:, None], key[None], dim=2) / 0.1
    loss, _ = info_nce(query, key, torch.arange(8), torch.arange(8) + 8)
    torch.testing.assert_close(loss, -(cosine.diagonal() - cosine.logsumexp(1)).mean())
    # key 1 shows the frame of key 0; key 2 shows the frame of query 1
    loss, _ = info_nce(torch.eye(3), torch.eye(3), torch.tensor([10, 11, 12]), torch.tensor([7, 7, 11]), temperature=1)
    negatives = (1, 0, 2)  # of each query; its own key has cosine 1, the others 0
    assert float(loss) == pytest.approx(sum(math.log((math.e + n) / math.e) for n in negatives) / 3, abs=1e-6)
    for ids in (torch.tensor([1, 2, 3, 3, 4]), torch.arange(5)):
        loss, metrics = info_nce(torch.ones(5, 8), torch.ones(5, 8), ids, ids)
        torch.testing.assert_close(metrics["chance_loss"], loss)
    assert float(loss) == pytest.approx(math.log(5))


def test_jigsaw_accepts_every_order_that_looks_right(doorkey, encoder, batch) -> None:
    orders = ordered_permutations(4).tolist()
    assert len({tuple(order) for order in orders if sorted(order) == [0, 1, 2, 3]}) == len(orders) == 24
    torch.manual_seed(0)
    jigsaw = Jigsaw(encoder, doorkey)
    tiles, right = jigsaw.shuffle(batch.anchor)
    assert assemble(tiles, batch.anchor).shape == batch.anchor.shape
    assert right.any(1).all()
    assert jigsaw.shuffle(torch.full_like(batch.anchor, 9))[1].all()  # all tiles alike: every order is right
    noise = torch.randint(0, 256, batch.anchor.shape, dtype=torch.uint8)
    assert (jigsaw.shuffle(noise)[1].sum(1) == 1).all()  # all tiles differ: one order is right


@pytest.mark.parametrize("name", [name for name, objective in OBJECTIVES.items() if objective.kind == "vision"])
def test_each_objective_can_be_learned(name: str, doorkey: FrameStore, encoder: Encoder, batch: Batch) -> None:
    _, metrics = train(name, encoder, doorkey, [batch] * 60, rate=1e-3)
    share = f"{name}/accuracy"
    assert all(0 <= each[share] <= 1 for each in metrics if share in each)
    losses = [each[f"{name}/loss"] for each in metrics]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:2])


def test_combinations_are_weighted_sums_on_views_encoded_once(doorkey, encoder, batch) -> None:
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    loss, metrics = make_objective("temporal:2+inverse:0.5", encoder, doorkey)(FrameViews(encoder, batch))
    assert len(calls) == 2  # anchor and later, shared
    assert float(loss.detach()) == pytest.approx(2 * metrics["temporal/loss"] + 0.5 * metrics["inverse/loss"])


def test_views_shift_frames_unless_they_are_asked_not_to(doorkey, encoder, batch) -> None:
    shifted, plain = batch.views(encoder), batch.views(encoder, augment="none")
    assert not torch.equal(shifted.anchor, shifted.plain)
    assert torch.equal(plain.anchor, plain.plain)
    assert torch.equal(plain.later, encoder(batch.later))
    pretext = Pretext(encoder, make_objective("inverse", encoder, doorkey), augment="none")
    assert float(pretext(batch)[0].detach()) == float(pretext(batch)[0].detach())


def test_forward_learns_where_actions_lead_and_does_not_collapse(tmp_path: Path) -> None:
    frames = dot_world(tmp_path / "frames", "moves")
    encoder, forward, batch = learn("forward", frames, 110, gap=2)
    with torch.no_grad():
        _, own = forward(batch.views(encoder))
        _, shuffled = forward(dataclasses.replace(batch, actions=batch.actions.roll(1, 0)).views(encoder))
        spread = effective_rank(forward.projector(encoder(batch.anchor)))
    assert own["accuracy"] > 0.7  # of 16 places
    assert shuffled["accuracy"] < 0.4
    encoder, alone, batch = learn("forward", frames, 110, gap=2, weight=0.0)
    with torch.no_grad():
        assert spread > 1.4 * effective_rank(alone.projector(encoder(batch.anchor)))  # 16 places span 15 dimensions


def test_forward_stops_at_the_gap(doorkey: FrameStore, encoder: Encoder, batch: Batch) -> None:
    forward, latent = Forward(encoder, doorkey), torch.randn(64, 64)
    ahead = forward.unroll(latent, batch.actions, batch.gap)
    padded = torch.where(batch.actions < 0, 1, batch.actions)  # what is beyond the gap does not matter
    torch.testing.assert_close(forward.unroll(latent, padded, batch.gap), ahead)
    assert torch.equal(forward.unroll(latent, batch.actions, 0 * batch.gap), latent)
    first, code = batch.gap == 1, F.one_hot(batch.actions[:, 0], 7).float()
    expected = latent + forward.change(F.relu(forward.hidden(latent) * forward.gate(code)))
    torch.testing.assert_close(ahead[first], expected[first])
    assert 0 < first.sum() < 64


def test_change_learns_what_each_action_moves(tmp_path: Path) -> None:
    frames = dot_world(tmp_path / "frames", "moves")
    encoder, change, batch = learn("change", frames, 110, gap=2)
    with torch.no_grad():
        _, own = change(batch.views(encoder))
        _, shuffled = change(dataclasses.replace(batch, actions=batch.actions.roll(1, 0)).views(encoder))
        assert own["r2"] > 0.8
        assert shuffled["r2"] < 0.4
        assert change.picture(encoder, batch).shape[0] == 3
        change.output.weight.zero_()
        change.output.bias.zero_()
        assert float(change(batch.views(encoder))[0]) == pytest.approx(1)  # that nothing changes


def test_change_is_that_of_the_frames_and_stops_at_the_gap(doorkey, encoder, batch) -> None:
    change = OBJECTIVES["change"](encoder, doorkey)
    expected = F.avg_pool2d((batch.later.float() - batch.anchor.float()) / 255, 4)
    torch.testing.assert_close(change.change(batch), expected)
    features = torch.randn(64, 64)
    ahead = change.predict(features, batch.actions, batch.gap)
    padded = torch.where(batch.actions < 0, 1, batch.actions)  # what is beyond the gap does not matter
    torch.testing.assert_close(change.predict(features, padded, batch.gap), ahead)
    still = dataclasses.replace(batch, later=torch.cat([batch.later[:32], batch.anchor[32:]]))
    moving = change.predict(encoder(batch.anchor[:32]), batch.actions[:32], batch.gap[:32])
    loss = F.mse_loss(moving, expected[:32]) / expected[:32].square().mean()
    torch.testing.assert_close(change(still.views(encoder))[0], loss)  # the half that does not change is left out


def test_supervised_weighs_objects_as_much_as_all_other_cells(doorkey, encoder, batch) -> None:
    supervised = OBJECTIVES["supervised"](encoder, doorkey)
    first, last = supervised.head[-1], torch.zeros(supervised.cells, LOGITS)
    last[:, 1] = 50.0  # whatever is seen, the answer is "empty, of colour 0, without flags"
    last[:, [CLASSES[0], sum(CLASSES[:2])]] = 50.0
    torch.nn.init.zeros_(first.weight)
    first.bias.data = last.flatten()
    symbols = batch.codes.flatten(1, 2).long()
    wrong = (symbols != torch.tensor([1, 0, 0])).sum(-1).float()
    objects = symbols[..., 0] >= BACKGROUND
    expected = 50 * (wrong[objects].mean() + wrong[~objects].mean()) / 2
    assert float(supervised(batch.views(encoder))[0].detach()) == pytest.approx(float(expected), rel=1e-4)


def test_supervised_reads_the_labels_of_pixels(tmp_path: Path) -> None:
    """Of the bright quadrant, unknown if it is the last, and a number with more values than classes."""

    def read(venv: VecEnv) -> dict[str, list[int]]:
        shown = np.array(venv.get_attr("quadrant"))
        return {"quadrant": np.where(shown == 3, -1, shown), "number": 100 * shown + np.arange(len(shown)), "same": 5}

    frames = rlpre.collect(
        worlds(4), tmp_path, 1200, labels=lambda venv: {k: list(np.resize(v, 4)) for k, v in read(venv).items()}
    )
    edges = label_edges(frames)
    assert edges.shape == (3, BINS - 1)
    assert edges[0].tolist() == [1, 2] + [math.inf] * 5
    assert not edges[2].isfinite().any()
    classes = (torch.from_numpy(frames.column("number").astype(int))[:, None] >= edges[1]).sum(1)
    assert classes.bincount(minlength=BINS).min() > 0.3 * len(frames) / BINS, "about the same size"
    encoder, supervised, batch = learn("supervised", frames, 120, gap=1)
    assert batch.labels.shape == (64, 3)
    assert -1 in batch.labels
    with torch.no_grad():
        loss, metrics = supervised(batch.views(encoder))
        assert metrics["accuracy"] > 0.7
        known = batch.labels >= 0
        other = torch.where(known, batch.labels, 77)
        unknown = dataclasses.replace(batch, labels=torch.full_like(other, -1))
        assert float(supervised(unknown.views(encoder))[0]) == 0
        wrong = dataclasses.replace(batch, labels=torch.where(known, (batch.labels + 1) % 3, -1))
        assert supervised(wrong.views(encoder))[0] > 2 * loss
    same = rlpre.collect(worlds(), tmp_path / "same", 20, labels=lambda venv: {"same": [5] * venv.num_envs})
    with pytest.raises(RlpreError, match=r"no label of .*same has two known values, so none can be learned"):
        OBJECTIVES["supervised"](encoder, same)
    plain = dot_world(tmp_path / "plain", "moves")
    with pytest.raises(RlpreError, match="holds plain pixels without labels: pretrain with contrastive"):
        OBJECTIVES["supervised"](encoder, plain)


def test_a_label_that_is_mostly_zero_keeps_its_other_values(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)

    def ammo(venv: VecEnv) -> dict[str, list[int]]:
        return {"ammo": np.where(draw.random(4) < 0.9, 0, draw.integers(10, 26, 4)).tolist()}

    frames = rlpre.collect(worlds(4), tmp_path, 1200, labels=ammo)
    (edges,) = label_edges(frames)
    assert edges[0] == 10
    ammunition = frames.column("ammo")[frames.acted]
    classes = (torch.from_numpy(ammunition.astype(int))[:, None] >= edges).sum(1).bincount(minlength=BINS)
    assert classes[0] == (ammunition == 0).sum()
    assert classes[1:].min() > 0.5 * (ammunition > 0).sum() / (BINS - 1)


@pytest.mark.parametrize("batch", [2, 3])
def test_change_learns_from_the_smallest_batches(batch: int, doorkey: FrameStore, tmp_path: Path) -> None:
    rlpre.pretrain(doorkey, out=tmp_path, objective="change", steps=1, batch=batch, device="cpu")


def test_decorrelation_by_hand() -> None:
    axis, other = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    assert float(decorrelation(torch.stack([3 * axis, other + 7], 1))) == pytest.approx(0, abs=1e-6)
    assert float(decorrelation(torch.stack([axis, -2 * axis], 1))) == pytest.approx(1)  # two pairs at -1, two columns
    assert float(decorrelation(torch.stack([axis, axis, axis, other], 1))) == pytest.approx(6 / 4)


def test_target_networks_follow_and_are_never_optimised() -> None:
    fast = torch.nn.BatchNorm1d(2)
    slow = TargetNetworks(fast)
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
    frames = dot_world(tmp_path / "frames", "vectors")
    encoder, inverse, batch = learn("inverse", frames, 50, gap=1)
    assert batch.actions.shape == (64, 1, 2)
    with torch.no_grad():
        _, metrics = inverse(batch.views(encoder))
        assert metrics["r2"] > 0.5
        assert 0.7 < float(inverse.code(batch.actions).std()) < 1.3  # though one axis is 100 times the other
    assert learn("forward", frames, 2, gap=3)[1].code.size == 2


def test_what_frames_lack_is_refused_by_name(tmp_path: Path) -> None:
    film, noise = dot_world(tmp_path / "film", None), np.random.default_rng(0).integers(0, 256, (20, 36, 36), np.uint8)
    images = rlpre.from_arrays(noise, tmp_path / "images", episode_start=np.ones(20, bool))
    encoder = Encoder("cnn", InputSpec((1, 36, 36)), features=16)
    make_objective("temporal+contrastive+jigsaw", encoder, film)
    make_objective("contrastive+jigsaw", encoder, images)
    for objective in ("inverse", "forward"):
        with pytest.raises(RlpreError, match=f"'{objective}' learns from actions, but .*film holds frames without act"):
            make_objective(f"temporal+{objective}", encoder, film)
    with pytest.raises(RlpreError, match=r"'temporal' learns from pairs, but .*images holds single images: use con"):
        make_objective("contrastive+temporal", encoder, images)
    single = FrameReader(images, encoder).draw(16, np.random.default_rng(0))  # pairs with themselves
    assert single.anchor is single.later
    assert single.actions.shape == (16, 0)
    assert not single.gap.any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("temporl", "unknown objective 'temporl': did you mean 'temporal'"),
        ("temporal+temporal", "named twice"),
        ("temporal:-1", "not a positive number"),
        ("temporal:x", "not a positive number"),
    ],
)
def test_wrong_objectives_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        parse_objective(text)


class Brightness(Objective):
    """Predicts the mean of a frame."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.head = torch.nn.Linear(encoder.num_features, 1)

    def forward(self, views: FrameViews) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        target = views.batch.anchor.float().mean((1, 2, 3)) / 255
        return (self.head(views.anchor)[:, 0] - target).square().mean(), {"mean": target.mean()}


def test_an_objective_of_ones_own(doorkey: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlpre.objectives, "OBJECTIVES", dict(OBJECTIVES))
    register_objective("brightness", Brightness)
    register_objective("brightness", Brightness)  # as a notebook does
    settings = {"objective": "brightness+temporal:0.1", "steps": 2, "batch": 8, "features": 8}
    assert "brightness/mean" in rlpre.pretrain(doorkey, out=tmp_path, **settings).metrics
    for name, given, sentence in (
        ("temporal", Brightness, "the objective name 'temporal' is taken or no plain word: choose one not among auto"),
        ("a+b", Brightness, r"the objective name 'a\+b' is taken or no plain word"),
        (
            "mine",
            torch.nn.Linear,
            "'mine' is registered with .*Linear.*: give a subclass of rlpre.objectives.Objective",
        ),
        ("mine", type("Lazy", (Objective,), {}), "'mine' is registered with .*Lazy.* that defines forward"),
    ):
        with pytest.raises(RlpreError, match=sentence):
            register_objective(name, given)
