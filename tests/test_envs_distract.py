"""MiniGrid before natural pictures: the same worlds, other frames; exact in stores; bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from minigrid.core.world_object import Ball
from PIL import Image

import envs
from agents.presets import AgentConfig
from envs.minigrid.distract import FEWEST, ZOOM, Drift, distracting
from envs.minigrid.overlap import overlaps, states
from envs.minigrid.trials import ExpertActor, play
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.evaluation.invariance import changed_frames
from rlpre.objectives import make_objective
from rlpre.objectives.batches import FrameReader, WindowReader

DOORKEY, SIZE = "MiniGrid-DoorKey-5x5-v0", (56, 56)
ACTIONS = np.random.default_rng(0).integers(0, 7, (400, 4))


def run(view: str, seed: int = 0, steps: int = 400, **look: Any) -> tuple[np.ndarray, list, dict]:
    """Frames (T + 1, 4, 3, H, W), (rewards, ends) by step, and terminal observations by (step, environment)."""
    venv = envs.make_vec(DOORKEY, 4, seed, view=view, **look)
    frames, results, ends = [venv.reset()], [], {}
    for t, actions in enumerate(ACTIONS[:steps]):
        seen, reward, done, infos = venv.step(actions)
        frames.append(seen)
        results.append((reward.tolist(), done.tolist()))
        ends |= {(t, i): infos[i]["terminal_observation"] for i in np.flatnonzero(done).tolist()}
    return np.stack(frames), results, ends


@pytest.mark.parametrize("dict_obs", [False, True])
def test_gymnasium_checker(dict_obs: bool) -> None:
    check_env(envs.make(DOORKEY, view="distract", tile_size=4, dict_obs=dict_obs, strength=0.3), skip_render_check=True)


def test_the_same_seed_gives_the_same_frames_and_another_one_others() -> None:
    first, results, ends = run("distract")
    again, _, ends_again = run("distract")
    assert np.array_equal(first, again)
    assert all(np.array_equal(frame, ends_again[key]) for key, frame in ends.items())
    assert len(ends) > 3
    assert not np.array_equal(run("distract", seed=1, steps=1)[0], first[:2])
    assert run("partial")[1] == results, "pictures change no world"


def test_strength_0_is_the_plain_view() -> None:
    frames, results, ends = run("distract", strength=0)
    plain, plain_results, plain_ends = run("partial")
    assert np.array_equal(frames, plain)
    assert results == plain_results
    assert all(np.array_equal(frame, plain_ends[key]) for key, frame in ends.items())


def test_the_true_state_is_that_of_the_plain_view() -> None:
    venvs = [envs.make_vec(DOORKEY, 4, 0, view=view, state=True) for view in ("partial", "distract")]
    for venv in venvs:
        venv.reset()
    for actions in ACTIONS:
        plain, shown = ([info["state"] for info in venv.step(actions)[3]] for venv in venvs)
        assert np.array_equal(plain, shown)


def test_strength_1_shows_no_cell() -> None:
    """Two levels with different objects give the same frames."""
    worlds = [envs.make(name, view="distract", strength=1) for name in (DOORKEY, "MiniGrid-LavaGapS5-v0")]
    for seed in range(5):
        first, second = (world.reset(seed=seed)[0] for world in worlds)
        assert np.array_equal(first, second)
        assert np.array_equal(*(world.step(6)[0] for world in worlds))


@pytest.mark.parametrize("strength", [0, 1])
def test_an_object_without_a_tile_lies_before_the_picture_too(strength: float) -> None:
    class Sign(Ball):
        pass

    views = {"partial": {}, "distract": {"strength": strength}}
    worlds = [envs.make(DOORKEY, view=view, **look) for view, look in views.items()]
    for world in worlds:
        world.reset(seed=0)
        world.grid_env.carrying = Sign("red")
    (stock, *_, info), (shown, *_) = (world.step(6) for world in worlds)
    assert info["codes"] is None
    assert np.array_equal(stock, shown) == (strength == 0)
    worlds[1].grid_env.carrying = None
    worlds[1].reset(seed=0)
    assert np.array_equal(worlds[1].step(6)[0], shown) == (strength == 1)


def test_a_picture_drifts_within_an_episode_and_changes_between_episodes() -> None:
    world = envs.make(DOORKEY, view="distract", strength=1)
    first, _ = world.reset(seed=3)
    later = [world.step(6)[0] for _ in range(3)]
    assert len({frame.tobytes() for frame in (first, *later)}) == 4
    # the picture moves by at most 2 pixels along each axis
    inner = first[:, 2:-2, 2:-2]
    windows = [later[0][:, y : y + 52, x : x + 52] for y in range(5) for x in range(5)]
    assert any(np.array_equal(window, inner) for window in windows)
    assert not np.array_equal(world.reset()[0], first)
    assert np.array_equal(world.reset(seed=3)[0], first)


def test_drift_stays_inside_the_picture_and_reaches_all_of_it() -> None:
    atlas = distracting(envs.atlas(8), SIZE)
    drift = Drift(atlas, SIZE)
    drift.reset(0)
    places = []
    for _ in range(2000):
        drift.step()
        places.append(drift._place)
        atlas.blend(np.zeros((1, 3, *SIZE), np.uint8), np.frombuffer(drift.row, np.uint8)[None])
    moved = np.diff(np.array([list(place) for place in places]), axis=0)
    assert atlas.slack(SIZE)[0] == (ZOOM - 1) * 56
    assert np.abs(moved).max() <= 2


def test_pictures_of_train_and_test_are_apart() -> None:
    train, test = (distracting(envs.atlas(8), SIZE, part).pictures for part in ("train", "test"))
    assert not {picture.tobytes() for picture in train} & {picture.tobytes() for picture in test}
    assert len(train) >= FEWEST <= len(test)


def test_a_store_decodes_to_the_frames_that_an_agent_sees(tmp_path: Path) -> None:
    look = {"view": "distract", "strength": 0.4}
    store = envs.collect(DOORKEY, tmp_path / "s", 800, 0, "0.5*random + 0.5*expert:0.2", 4, **look)
    plain = envs.collect(DOORKEY, tmp_path / "p", 800, 0, "0.5*random + 0.5*expert:0.2", 4)
    rows = np.arange(len(store))
    for name in ("action", "reward", "terminated", "truncated", "episode_start", *store.labels):
        assert np.array_equal(store.column(name), plain.column(name)), name
    assert np.array_equal(store.codes(rows), plain.codes(rows))
    assert np.array_equal(states(store), states(plain)), "the worlds can be replayed"
    shown = changed_frames(store)
    assert np.array_equal(shown["plain"](store.read(rows)).numpy(), plain.frames(rows))
    assert (shown["background"](store.read(rows)) != store.decode(store.read(rows))).flatten(1).any(1).all()


def test_codes_decode_to_the_frames_that_an_agent_sees() -> None:
    venv = envs.make_vec(DOORKEY, 4, 0, view="distract", strength=0.4).unwrapped
    seen, atlas, ended = venv.reset(), venv.envs[0].atlas, 0
    for actions in ACTIONS:
        assert np.array_equal(atlas.decode(venv.codes), seen)
        seen, _, done, infos = venv.step(actions)
        for i in np.flatnonzero(done):
            assert np.array_equal(atlas.decode(venv.terminal_codes[i]), infos[i]["terminal_observation"])
            ended += 1
    assert ended > 3


def test_trials_and_demonstrations_keep_what_was_shown(tmp_path: Path) -> None:
    seen = []

    class Watcher(ExpertActor):
        def act(self, frames: np.ndarray, *others: Any) -> np.ndarray:
            seen.append(frames[0].copy())
            return super().act(frames, *others)

    (trial,) = play(DOORKEY, [7], Watcher(), view="distract")
    (plain,) = play(DOORKEY, [7], ExpertActor())
    assert np.array_equal(trial.codes[:, :-1], plain.codes)
    assert np.array_equal(trial.advice, plain.advice)
    assert np.array_equal(envs.make(DOORKEY, view="distract").atlas.decode(trial.codes[:-1]), seen)
    store = envs.demonstrations(DOORKEY, tmp_path / "d", 3, 0, view="distract")
    assert store.frames([0]).shape == (1, 3, *SIZE)
    assert envs.demonstrations(DOORKEY, tmp_path / "d", 3, 0, view="distract").hash == store.hash


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    out = tmp_path_factory.mktemp("frames") / "distracting"
    return envs.collect(DOORKEY, out, 600, 1, "0.5*random + 0.5*expert:0.2", view="distract")


@pytest.mark.parametrize("name", ["supervised", "inverse", "jigsaw"])
def test_objectives_of_frames_read_the_cells(frames: FrameStore, name: str) -> None:
    encoder = Encoder("cnn", InputSpec(frames.space.shape))
    objective = make_objective(name, encoder, frames)
    batch = FrameReader(frames, encoder, gap=1).draw(16, np.random.default_rng(0))
    loss, _ = objective(batch.views(encoder))
    assert torch.isfinite(loss)
    assert batch.codes is not None
    assert batch.codes.shape == (16, 7, 7, 3)


def test_masked_hides_cells_and_leaves_the_picture(frames: FrameStore) -> None:
    vision = Encoder("cnn", InputSpec(frames.space.shape))
    encoder = SequenceEncoder("transformer", vision, frames.num_actions, width=32, window=8, causal=False)
    batch = WindowReader(frames, encoder).draw(4, np.random.default_rng(0))
    shown = []
    encoder.encode_frames = lambda pixels: shown.append(pixels) or vision(pixels.float())
    hidden = torch.zeros(batch.codes.shape[:-1], dtype=torch.bool)
    hidden[:, -1, :3] = True
    batch.views(encoder).masked(hidden, torch.zeros(vision.num_features))
    expected = batch.raw[:, -1].clone()
    expected[:, :3] = 0
    assert len(shown[-1]) == 4
    assert {frame.numpy().tobytes() for frame in shown[-1]} == {
        frame.numpy().tobytes() for frame in frames.decode(expected)
    }
    assert torch.isfinite(make_objective("masked", encoder, frames)(batch.views(encoder))[0])


def test_overlap_compares_cells(frames: FrameStore) -> None:
    assert overlaps(frames, [DOORKEY], 400)[DOORKEY].observation.value > 0.5


def test_presets_pass_the_distraction_on() -> None:
    config = AgentConfig(view="distract", strength=0.25, pictures="test")
    world = config.make_env(DOORKEY)(2, 0).unwrapped.envs[0]
    assert world.drift.weight == 64
    assert np.array_equal(world.atlas.pictures, distracting(envs.atlas(8), SIZE, "test").pictures)
    assert AgentConfig().look == {"view": "partial", "tile_size": 8, "palette": "day"}


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    for number in range(FEWEST):
        Image.new("RGB", (40 + number, 30), (10 * number, 0, 250)).save(tmp_path / f"{number}.png")
    world = envs.make(DOORKEY, view="distract", strength=1, pictures=str(tmp_path))
    colors = {tuple(sorted(world.reset(seed=seed)[0].reshape(3, -1)[:, 0].tolist())) for seed in range(30)}
    assert colors == {tuple(sorted((10 * number, 0, 250))) for number in range(FEWEST)}


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ({"strength": 1.5}, "strength is 1.5: give a number from 0"),
        ({"strength": -0.1}, "strength is -0.1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"view": "distrct"}, "did you mean 'distract'"),
        ({"view": "partial", "strength": 0.5}, "view 'partial' has no pictures: give view='distract'"),
        ({"view": "full", "pictures": "test"}, "view 'full' has no pictures"),
        ({"pictures": "nowhere"}, "nowhere is not a folder"),
        ({"pictures": "empty"}, "empty holds no images"),
        ({"pictures": "few"}, "few holds 1 pictures: give at least 4"),
        ({"pictures": "many"}, "many holds 8 pictures, too many for memory: give at most 5"),
        ({"pictures": "broken"}, "cannot be read as an image"),
    ],
)
def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("envs.minigrid.distract.MOST_BYTES", 5 * 3 * (ZOOM * 56) ** 2)
    for name, count in {"empty": 0, "few": 1, "many": 8, "broken": 4}.items():
        Path(name).mkdir()
        for number in range(count):
            file = Path(name) / f"{number}.png"
            file.write_bytes(b"no") if name == "broken" else Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(RlpreError, match=message):
        envs.make(DOORKEY, **{"view": "distract", **look})
