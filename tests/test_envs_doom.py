"""ViZDoom: real games. Frames, states, labels and ends agree with the game; what cannot be is refused."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import vizdoom as vzd
from gymnasium.utils.env_checker import check_env
from pixel_world import refuse
from stable_baselines3.common.vec_env import VecMonitor

import envs
import rlpre
from envs import doom
from envs.doom import DoomEnv, combinations, frame_labels, make_doom, read_labels, scenarios, state_vector
from rlpre.evaluation.probes import linear_probe
from rlpre.objectives import make_reader

FOUR = ["VizdoomBasic-v1", "VizdoomDefendCenter-v1", "VizdoomHealthGathering-v1", "VizdoomMyWayHome-v1"]
BASIC, HOME = FOUR[0], FOUR[3]


@contextmanager
def games(*arguments: object, **look: object) -> Iterator[VecMonitor]:
    venv = make_doom(*arguments, **look)
    yield venv
    venv.close()


@pytest.mark.parametrize("env_id", FOUR)
def test_gymnasiums_checker(env_id: str) -> None:
    env = DoomEnv(env_id, state=True)
    check_env(env, skip_render_check=True, skip_close_check=True)
    assert env.render().shape == (120, 160, 3)
    env.close()


def test_ids_and_actions() -> None:
    assert set(FOUR) < set(scenarios())
    assert combinations(["ATTACK"]) == [(), ("ATTACK",)]
    turns = combinations(["TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"])
    assert turns[4:] == [("MOVE_FORWARD", "TURN_LEFT"), ("MOVE_FORWARD", "TURN_RIGHT")]
    env = DoomEnv("VizdoomDeathmatch-v1")  # also has buttons that take numbers
    assert not any("DELTA" in button for pressed in env.actions for button in pressed)
    env.close()


def test_the_same_seed_plays_the_same_games() -> None:
    def play(seed: int, threads: int) -> list[np.ndarray]:
        with games(BASIC, 3, seed, threads=threads, state=True) as venv:
            rng = np.random.default_rng(0)
            found = [venv.reset()]
            for _ in range(80):
                observed, rewards, dones, infos = venv.step(rng.integers(4, size=3))
                found += [observed, rewards, dones, *(info["state"] for info in infos)]
            return found

    one = play(0, threads=3)
    assert any(each.dtype == bool and each.any() for each in one), "episodes end"
    assert all(map(np.array_equal, one, play(0, threads=1)))
    assert not all(map(np.array_equal, one, play(1, threads=3)))
    assert not np.array_equal(one[0][0], one[0][1]), "games of one environment differ"


@pytest.mark.parametrize("shape", [(60, 80), (84, 84), (240, 320)])
def test_frames_are_those_of_the_game(shape: tuple[int, int]) -> None:
    with games(HOME, 1, 0, shape=shape) as venv:
        (frame,) = venv.reset()
        assert frame.shape == venv.observation_space.shape == (3, *shape)
        drawn = np.moveaxis(venv.get_images()[0], -1, 0)
        if shape == (60, 80):  # means of 2 x 2 pixels
            drawn = drawn.reshape(3, 60, 2, 80, 2).mean((2, 4))
            assert np.abs(frame - drawn).max() <= 1
        elif shape == (240, 320):
            assert np.array_equal(frame, drawn)


def test_time_limit_and_its_last_frame() -> None:
    with games(BASIC, 1, 0, skip=8, state=True) as venv:
        venv.reset()
        for step in range(38):  # 300 frames of the game
            observed, _, (done,), (info,) = venv.step([1])
            assert done == (step == 37)
        assert info["TimeLimit.truncated"]
        assert info["episode"]["r"] == -300, "the last action lasts 4 frames, as in the game's own limit"
        assert not np.array_equal(info["terminal_observation"], observed[0])
        assert not np.array_equal(info["state"], venv.unwrapped.reset_infos[0]["state"])
        game = venv.unwrapped.envs[0]
        game.reset(seed=int(np.random.SeedSequence(0).generate_state(1)[0]))  # the first episode again
        for _ in range(38):
            last, *_ = game.step(1)
        assert np.array_equal(info["terminal_observation"], last)


def test_reaching_a_goal_terminates() -> None:
    with games(BASIC, 1, 0, state=True) as venv:
        (before,) = venv.reset()
        state = venv.unwrapped.reset_infos[0]["state"]
        for _ in range(75):
            sideways = state[10] * state[11] * 1000  # of the monster; positive to the left
            (observed,), (reward,), (done,), (info,) = venv.step(
                [3 if abs(sideways) < 12 else 1 if sideways > 0 else 2]
            )
            if done:
                break
            before, state = observed, info["state"]
        assert reward > 90
        assert not info["TimeLimit.truncated"]
        assert np.array_equal(info["terminal_observation"], before), "the game draws no frame after it"
        assert not np.array_equal(observed, before)


def thing(name: str, category: str, east: float, north: float, **place: float) -> SimpleNamespace:
    """An object of the state, and a label of the frame."""
    plain = {"name": name, "category": category, "position_x": east, "position_y": north}
    return SimpleNamespace(**plain, **{f"object_{key}": value for key, value in plain.items()}, **place)


def test_state_and_labels_by_hand() -> None:
    player = dict(zip(doom.VARIABLES, (100, -200, 90, 0, 5, 80, 20), strict=True))  # looks and runs north
    things = [
        thing("Medikit", "Health", 100, 800, x=0, width=32),  # 1,000 ahead
        thing("DoomPlayer", "Self", 100, -200, x=0, width=9),
        thing("Demon", "Monster", -400, -200, x=150, width=10),  # 500 to the left
    ]
    state = state_vector(player, things)
    assert state.shape == (doom.STATE,)
    assert state[:8] == pytest.approx([0.1, -0.2, 1, 0, 0.5, 0, 0.8, 0.2], abs=1e-6)
    assert state[8:18] == pytest.approx([1, 1, 0.5, 1, 0, 1, 0, 1, 0, 1], abs=1e-6)
    assert not state[18:].any()
    labels = frame_labels(player, things, 160)
    assert labels == {
        **{"x": 256, "y": 254, "angle": 2, "health": 8, "ammo": 20},
        **{"object": 1 + doom.NAMES.index("Demon"), "direction": 4, "distance": 500},
    }
    nothing = frame_labels(player, things[1:2], 160)
    assert (nothing["object"], nothing["direction"], nothing["distance"]) == (0, -1, -1)
    assert frame_labels(player, [thing("Imp", "Monster", 0, 0, x=0, width=1)], 160)["object"] == 1 + len(doom.NAMES)


def test_labels_are_collected_and_probed(tmp_path: Path) -> None:
    with games(BASIC, 4, 0, labels=True) as venv:
        store = rlpre.collect(venv, tmp_path, 800, labels=read_labels)
        now = read_labels(venv)
    assert store.tasks == [BASIC]
    assert tuple(store.labels) == tuple(now) == doom.LABELS
    assert set(store.column("object")[store.acted]) <= {0, 1 + doom.NAMES.index("Cacodemon")}
    encoder = rlpre.Encoder("cnn", rlpre.InputSpec(store.space.shape), features=64)
    scores = linear_probe(encoder, make_reader(store, encoder))
    assert scores["direction"] > 0.6, "chance is 0.2 to 0.33"


def test_a_killed_game_is_replaced_once() -> None:
    died = "MyWayHome-v1 died: its episode is truncated, a new game starts"
    with games(HOME, 1, 0) as venv:
        before = venv.reset()
        _kill_the_game()
        with pytest.warns(UserWarning, match=died):
            _, _, dones, infos = venv.step([0])
        assert dones.all()
        assert infos[0]["TimeLimit.truncated"]
        assert np.array_equal(infos[0]["terminal_observation"], before[0])
        venv.step([0])
        _kill_the_game()
        refuse("died in two episodes in a row", lambda: venv.step([0]))


def _kill_the_game() -> None:
    listed = subprocess.run(["pgrep", "-P", str(os.getpid()), "-x", "vizdoom"], capture_output=True, check=True)
    os.kill(int(listed.stdout), signal.SIGKILL)


def test_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, call in {
        "unknown environment 'VizdoomBasic-v0': did you mean 'VizdoomBasic-v1'": lambda: make_doom(
            "VizdoomBasic-v0", 1, 0
        ),
        "n_envs is 0: it must be at least 1": lambda: make_doom(BASIC, 0, 0),
        "seed is -1": lambda: make_doom(BASIC, 1, -1),
        "skip is 0: it must be at least 1": lambda: make_doom(BASIC, 1, 0, skip=0),
        r"shape is \(3, 60, 80\): give \(height, width\)": lambda: make_doom(BASIC, 1, 0, shape=(3, 60, 80)),
        "these games tell no labels: make them with labels=True": lambda: doom.read_labels(make_doom(BASIC, 1, 0)),
        "unknown argument of VizdoomBasic-v1: 'view'": lambda: envs.make_vec(BASIC, 1, 0, view="distract"),
        "height is 0": lambda: make_doom(BASIC, 1, 0, shape=(0, 80)),
        r"shape is \(500, 80\): games draw at most \(480, 640\)": lambda: make_doom(BASIC, 1, 0, shape=(500, 80)),
        "10000000 games need more memory than this machine has: make at most": lambda: make_doom(BASIC, 10**7, 0),
    }.items():
        refuse(named, call)

    def crash(game: object) -> None:
        raise vzd.ViZDoomErrorException("no display")

    monkeypatch.setattr(vzd.DoomGame, "init", crash)
    refuse("the game of VizdoomBasic-v1 does not start: no display", DoomEnv(BASIC).reset)
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    refuse("ViZDoom cannot be imported .*pip install vizdoom", lambda: importlib.reload(doom))
