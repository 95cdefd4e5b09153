"""Objectives on sequences: what they hide stays hidden, and each learns what can be known, and only that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import envs
import rlpre
from agents.likelihood import conditional_likelihood
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.evaluation.probes import linear_probe
from rlpre.features import encode
from rlpre.objectives import make_objective
from rlpre.objectives.autoregressive import Autoregressive
from rlpre.objectives.batches import WindowBatch, WindowReader
from rlpre.objectives.masked import KINDS, hide, nearest_step
from rlpre.objectives.symbols import balanced, foreground, mean_where
from rlpre.pretrain import Pretext, read_state

STEPS = 6  # frames of an episode
EMPTY, FLOOR, KEY, BALL = 1, 3, 5, 6
LEARNED = {"autoregressive": 350, "masked": 200, "cpc": 200}  # steps


def memory_world(path: Path, episodes: int, seed: int, codes: bool = True) -> FrameStore:
    """A grey key moves along a row, left or right as the action says; a ball is shown first, and again after a bell."""
    rng, every = np.random.default_rng(seed), np.arange(episodes)
    colour, action = rng.integers(4, size=episodes), rng.integers(2, size=(episodes, STEPS))
    begin = rng.integers(3, size=episodes)
    moved = np.cumsum(np.c_[begin, 2 * action[:, :-1] - 1], axis=1) % 3
    frames = np.zeros((episodes, STEPS, 3, 3, 3), np.uint8)
    frames[..., 0] = EMPTY
    for step in range(STEPS):
        frames[every, step, 2, moved[:, step]] = (KEY, 5, 0)
    for step in (0, STEPS - 1):
        frames[:, step, 0, 0, 0], frames[:, step, 0, 0, 1] = BALL, colour
    frames[:, -2, 0, 2, 0] = FLOOR  # the bell
    frames, tiles = frames.reshape(-1, 3, 3, 3), envs.atlas(12)
    action[:, -1] = -1
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "colour": colour.repeat(STEPS)}
    given = {"space": spaces.Box(0, 255, (3, 36, 36), np.uint8), "action_space": spaces.Discrete(2), "spec": {}}
    with FrameStore.create(path, **given, atlas=tiles if codes else None, labels=["colour"]) as writer:
        start = np.arange(len(frames)) % STEPS == 0
        writer.append(frames if codes else tiles.decode(frames), action=action.ravel(), episode_start=start, **columns)
    return FrameStore.open(path)


def sequence_encoder(store: FrameStore, backbone: str = "gru", window: int = STEPS, **others: bool) -> SequenceEncoder:
    torch.manual_seed(0)
    vision = Encoder("cnn", InputSpec(store.space.shape), features=32).eval()
    vision.standardise(encode(vision, store, np.arange(min(len(store), 400))))  # as pretraining leaves it
    return SequenceEncoder(backbone, vision, store.num_actions, width=32, window=window, **others)


def draw(store: FrameStore, encoder: SequenceEncoder, count: int, ahead: int = 1) -> WindowBatch:
    return WindowReader(store, encoder, ahead).draw(count, np.random.default_rng(0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return memory_world(tmp_path_factory.mktemp("memory") / "world", 200, seed=0)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return memory_world(tmp_path_factory.mktemp("memory") / "held-out", 60, seed=1)


@pytest.fixture(scope="module")
def trained(world: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, rlpre.PretrainResult]:
    """A pretraining with each objective."""
    out, settings = tmp_path_factory.mktemp("trained"), {"batch": 24, "lr": 5e-3, "gap": 3}
    results = {}
    for name, steps in LEARNED.items():
        encoder = sequence_encoder(world, causal=name != "masked")
        results[name] = rlpre.pretrain(world, encoder=encoder, objective=name, out=out / name, steps=steps, **settings)
    return results


def test_frames_are_predicted_from_memory_and_action(
    trained: dict[str, rlpre.PretrainResult], held_out: FrameStore
) -> None:
    """The last frame shows the ball of the first one again: without memory 1 of 4, without the action 1 of 2."""
    paths = {name: trained[name].path for name in ("autoregressive", "masked")}
    scores = conditional_likelihood(paths, held_out, windows=200, device="cpu")
    assert scores["autoregressive"]["next_accuracy"] > 0.95
    assert scores["autoregressive"]["next_nll"] < 0.2  # of guessing the ball alone: 0.69
    for found in scores.values():
        assert found["middle_accuracy"] > 0.95
        assert found["next_copied"] == found["middle_copied"] == 0
    with pytest.raises(RlpreError, match="cpc holds no pretraining that predicts symbols"):
        conditional_likelihood({"a": trained["autoregressive"].path, "b": trained["cpc"].path}, held_out)


def test_probes_read_features_given_their_past(trained: dict[str, rlpre.PretrainResult], world: FrameStore) -> None:
    """Four of six frames do not show the ball; the probe is asked for its colour at all of them."""
    result = trained["autoregressive"]
    assert result.probes["colour"] > 0.85
    reader = WindowReader(world, result.encoder)
    assert linear_probe(result.encoder, reader) == result.probes
    rows = reader.distinct(np.arange(len(world)))
    assert len(world) > len(rows) > world.distinct  # a frame counts as often as its past differs


def test_an_object_weighs_as_much_as_all_other_cells() -> None:
    losses = torch.tensor([4.0, 1.0, 1.0, 4.0])
    assert balanced(losses, torch.tensor([True, False, False, False])) == 3  # (4 + 2) / 2
    assert balanced(losses, torch.zeros(4, dtype=torch.bool)) == 1.25  # no object: half the mean of the others


def test_cpc_finds_where_actions_lead(trained: dict[str, rlpre.PretrainResult], held_out: FrameStore) -> None:
    encoder = SequenceEncoder.load(trained["cpc"].path)
    model = Pretext(encoder, make_objective("cpc", encoder, held_out))
    model.load_state_dict(read_state(trained["cpc"].path)["model"])
    batch = draw(held_out, encoder, 60, ahead=3)
    with torch.no_grad():
        _, own = model.eval()(batch)
        _, others = model(replace(batch, actions=1 - batch.actions.clamp_min(0)))
    assert own["cpc/accuracy"] > 0.65
    assert others["cpc/accuracy"] < 0.3


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_autoregressive_sees_neither_later_frames_nor_later_actions(backbone: str, world: FrameStore) -> None:
    encoder = sequence_encoder(world, backbone).eval()
    objective, batch = Autoregressive(encoder, world).eval(), draw(world, encoder, 6)
    features, actions = batch.features.clone(), batch.actions.clone()
    features[:, 4:], actions[:, 5:] = 7, 0
    changed = replace(batch, features=features, actions=actions)
    asked, again = (objective.fill(given.views(encoder), 4) for given in (batch, changed))
    assert torch.equal(asked, again)
    actions[:, 4] = 1 - actions[:, 4]
    assert not torch.equal(asked, objective.fill(changed.views(encoder), 4))  # the action that led there is known


def test_masked_sees_nothing_of_what_it_hides(world: FrameStore) -> None:
    torch.manual_seed(0)
    encoder, blank = sequence_encoder(world, "transformer", causal=False).eval(), torch.zeros(32)
    batch = draw(world, encoder, 12)
    hidden, _ = hide(batch.codes, batch.present)
    other = batch.codes.masked_fill(hidden[..., None], 2)
    features = batch.features.masked_fill(hidden.flatten(2).any(2)[..., None], 7)  # of frames with hidden cells
    changed = replace(batch, raw=other, features=features)
    shown, again = (given.views(encoder).masked(hidden, blank) for given in (batch, changed))
    assert torch.equal(shown, again)
    assert not torch.allclose(shown, batch.views(encoder).steps)


def test_what_masks_hide(doorkey: FrameStore) -> None:
    torch.manual_seed(0)
    batch = draw(doorkey, sequence_encoder(doorkey, window=16), 300)
    hidden, kind = hide(batch.codes, batch.present)
    assert not batch.present.all()
    assert not hidden[~batch.present].any()
    assert hidden.flatten(1).any(1).all()
    objects = foreground(batch.codes)
    for window, shown, what, there, cells in zip(batch.codes, hidden, kind, batch.present, objects, strict=True):
        steps, rows = shown.flatten(1).any(1), shown.any(2).any(0)
        if KINDS[what] == "object":
            (alike,) = window[shown][:, :2].unique(dim=0)
            assert torch.equal(shown, cells & (window[..., :2] == alike).all(-1) & there[:, None, None])
            continue
        assert (rows.nonzero().diff(dim=0) == 1).all()
        assert torch.equal(shown, (steps[:, None] & rows)[..., None].expand_as(shown))
        assert 0 < steps.sum() < there.sum()
        assert 1 <= rows.sum() <= (7 if KINDS[what] == "block" else 3)
        if there.all():
            edges = [-1, *steps.diff().nonzero().flatten().tolist(), 15]
            assert 2 <= max(np.diff(edges)) <= 6  # blocks of 2 to 6 of 16 steps, hidden and shown in turn
            assert len(set(np.diff(edges)[1:-1])) <= 1
    assert kind.bincount(minlength=3).min() > 60


def test_nearest_step_by_hand() -> None:
    codes = torch.arange(1, 6, dtype=torch.uint8)[None, :, None, None, None].expand(1, 5, 1, 2, 3)
    visible = torch.tensor([[True, False, False, False, True], [False] * 5]).T[None, :, None]
    copied = nearest_step(codes, visible)[0, :, 0, :, 0]
    assert copied.T.tolist() == [[1, 1, 1, 5, 5], [0] * 5]  # the second cell is never visible


def nearest_cell(codes: Tensor, visible: Tensor) -> Tensor:
    """What the nearest visible cell of the same frame shows."""
    place = torch.cartesian_prod(*(torch.arange(size) for size in visible.shape[-2:])).float()
    distance = torch.cdist(place, place) + torch.where(visible, 0.0, torch.inf).flatten(2)[:, :, None]
    flat = codes.flatten(2, 3)
    return flat.gather(2, distance.argmin(3)[..., None].expand_as(flat)).view_as(codes)


def test_copying_a_neighbour_does_not_solve_real_masks(doorkey: FrameStore) -> None:
    """Half of these steps are random and three of five change nothing: copying is never easier than here."""
    torch.manual_seed(0)
    batch = draw(doorkey, sequence_encoder(doorkey, window=32), 300)
    hidden, kind = hide(batch.codes, batch.present)
    visible, objects = ~hidden & batch.present[..., None, None], foreground(batch.codes) & hidden
    for copied, most in ((nearest_step(batch.codes, visible), 0.5), (nearest_cell(batch.codes, visible), 0.1)):
        right = (copied == batch.codes).all(-1)
        assert mean_where(right, objects) < most
        assert mean_where(right, objects & (kind == KINDS.index("object"))[:, None, None, None]) < 0.05


@pytest.mark.parametrize(("objective", "backbone"), [("autoregressive+cpc:0.5", "gru"), ("masked", "transformer")])
def test_killed_and_resumed_ends_with_the_same_weights(
    objective: str, backbone: str, world: FrameStore, tmp_path: Path
) -> None:
    def die(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    encoder = sequence_encoder(world, backbone, causal=objective != "masked")
    given = {"encoder": encoder, "objective": objective, "steps": 8, "batch": 8, "checkpoint_every": 4}
    whole = rlpre.pretrain(world, out=tmp_path / "whole", **given).encoder
    with pytest.raises(KeyboardInterrupt):
        rlpre.pretrain(world, out=tmp_path / "cut", report=die, **given)
    cut = rlpre.pretrain(world, out=tmp_path / "cut", **given).encoder
    assert same(cut, whole)
    assert same(cut.frames, encoder.frames)  # the encoder of frames stays as it was
    assert not same(cut.stages, encoder.stages)


def test_a_checkpoint_has_curves_pictures_and_standard_features(
    trained: dict[str, rlpre.PretrainResult], world: FrameStore
) -> None:
    for name, result in trained.items():
        board = EventAccumulator(str(result.path)).Reload().Tags()
        assert {f"pretext/{name}/accuracy", "health/alignment", "probes/colour"} <= set(board["scalars"])
        assert set(board["images"]) == {"neighbours"} | ({name} if name != "cpc" else set())
        features = WindowReader(world, result.encoder).encode(result.encoder, np.arange(len(world)))
        assert features.mean(0).abs().max() < 0.5  # standardised over frames as they are drawn
        assert 0.5 < features.std() < 1.5


def test_bad_input(world: FrameStore, tmp_path: Path) -> None:
    causal, both = sequence_encoder(world), sequence_encoder(world, "transformer", causal=False)
    pixels = memory_world(tmp_path / "pixels", 4, seed=0, codes=False)
    given = {"out": tmp_path / "out", "steps": 2, "batch": 4}
    for store, encoder, objective, sentence in (
        (world, None, "cpc", "'cpc' pretrains a sequence encoder and was given a vision encoder: .*among change"),
        (world, causal, "temporal", "'temporal' pretrains a vision encoder and was given a sequence encoder: .*, cpc"),
        (world, both, "autoregressive", "'autoregressive' would be shown its own answers: .*causal=True"),
        (world, causal, "masked", "'masked' fills in what is hidden from both sides: .*causal=False"),
        (pixels, causal, "autoregressive", "'autoregressive' reads symbols, but .*plain pixels: pretrain with cpc"),
        (pixels, both, "masked", "'masked' reads symbols, but .*plain pixels: pretrain with cpc"),
        (world, sequence_encoder(world, window=9), "cpc", "a window of 9 steps does not fit .* longest episode has 6"),
        (world, sequence_encoder(world, window=1), "cpc", "a window of 1 step has nothing to predict"),
    ):
        with pytest.raises(RlpreError, match=sentence):
            rlpre.pretrain(store, encoder=encoder, objective=objective, **given)
        assert not (tmp_path / "out").exists()
    result = rlpre.pretrain(pixels, encoder=causal, objective="cpc", **given)  # which needs no symbols
    assert result.encoder.pretraining["objective"] == "cpc"
