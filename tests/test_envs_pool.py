"""EnvPool's levels are MiniGrid's: the same pixels, rules and distributions; its games step as SB3 expects."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy.stats import fisher_exact, ks_2samp
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

import envs
import rlpre
from agents.presets import TrainConfig
from envs import pool
from envs.minigrid.render import one_hot
from rlpre.errors import RlpreError

envpool = pytest.importorskip("envpool")
DOORKEY, EMPTY, LEAPER, PONG = "MiniGrid-DoorKey-6x6-v0", "MiniGrid-Empty-5x5-v0", "LeaperEasy-v0", "Pong-v5"


# The same pixels and rules.


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-8x8-v0", "MiniGrid-MemoryS7View3-v0", "BabyAI-BossLevel-v0"])
def test_the_same_symbols_give_the_same_pixels(env_id: str) -> None:
    world = envs.make(env_id)
    rng, (frame, info) = np.random.default_rng(0), world.reset(seed=0)
    for _ in range(200):
        images = world.unwrapped.gen_obs()["image"][None]
        pool._mark_agent(images)
        assert np.array_equal(pool._codes(images)[0], info["codes"])
        assert np.array_equal(pool._draw(pool._shown(envs.atlas(8)), images)[0], frame)
        frame, _, terminated, truncated, info = world.step(rng.choice([0, 1, 2, 2, 3, 4, 5]))
        if terminated or truncated:
            frame, info = world.reset()


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first if key != "episode")
    return bool(np.array_equal(first, second))


@pytest.mark.parametrize("palette", ["day", "night"])
def test_a_level_without_chance_gives_all_that_our_own_worlds_give(palette: str) -> None:
    """Frames, rewards, ends, infos, terminal observations and codes, over successes and time limits."""
    ours, theirs = (envs.make_vec(EMPTY, 8, 0, engine=engine, palette=palette) for engine in ("minigrid", "envpool"))
    assert same(ours.reset(), theirs.reset())
    assert same(ours.unwrapped.codes, theirs.unwrapped.codes)
    rng, ends = np.random.default_rng(0), Counter()
    for _ in range(400):
        actions = rng.choice([0, 1, 2, 2, 3, 4, 5, 6], 8)
        one, other = ours.step(actions), theirs.step(actions)
        assert same(one[0], other[0])
        assert same(one[2], other[2])
        assert np.allclose(one[1], other[1], atol=1e-6)  # EnvPool computes with single precision
        assert [part.dtype for part in one[:3]] == [part.dtype for part in other[:3]]
        assert all(same(*pair) for pair in zip(one[3], other[3], strict=True))
        assert [info["episode"]["l"] for info in one[3] if "episode" in info] == [
            info["episode"]["l"] for info in other[3] if "episode" in info
        ]
        assert same(ours.unwrapped.codes, theirs.unwrapped.codes)
        assert same(ours.unwrapped.terminal_codes, theirs.unwrapped.terminal_codes)
        assert all(same(*pair) for pair in zip(ours.unwrapped.reset_infos, theirs.unwrapped.reset_infos, strict=True))
        ends.update(bool(info["TimeLimit.truncated"]) for info in one[3] if "episode" in info)
    assert min(ends[True], ends[False]) > 10


# The same distributions.


def first_frames(venv: VecEnv, rounds: int) -> Counter:
    """How often a cell of the first frame shows a symbol, and a mission is given."""
    seen: Counter = Counter()
    for _ in range(rounds):
        venv.reset()
        for codes, info in zip(venv.unwrapped.codes, venv.unwrapped.reset_infos, strict=True):
            seen.update([*enumerate(map(tuple, codes.reshape(-1, 3).tolist())), info["mission"], info["direction"]])
    return seen


def episodes(venv: VecEnv, steps: int) -> tuple[list[int], list[float]]:
    """Lengths and returns of episodes in which things in front of the agent are often taken, opened or bumped into."""
    rng, lengths, returns = np.random.default_rng(0), [], []
    venv.reset()
    helpful = np.array([2, 2, 2, 2, 5, 3, 3, 5, 2, 2, 2])  # action by type of the cell in front
    for _ in range(steps):
        front = venv.unwrapped.codes[:, -2, 3, 0]
        free = rng.choice([0, 1, 2, 2, 2, 3, 4, 5, 6], venv.num_envs)
        actions = np.where(rng.random(venv.num_envs) < 0.4, helpful[front], free) % venv.action_space.n
        ends = [info["episode"] for info in venv.step(actions)[3] if "episode" in info]
        lengths += [end["l"] for end in ends]
        returns += [end["r"] for end in ends]
    return lengths, returns


def doubt(env_id: str) -> float:
    """The smallest p-value, times the number of tests, that the two engines give the same distributions."""
    venvs = [envs.make_vec(env_id, 100, 7, engine=engine) for engine in ("minigrid", "envpool")]
    ours, theirs = (first_frames(venv, 4) for venv in venvs)
    common = [key for key in ours | theirs if ours[key] + theirs[key] >= 8]
    tables = ([[count[key], 400 - count[key]] for count in (ours, theirs)] for key in common)
    p_values = [fisher_exact(table)[1] for table in tables]
    walks = [episodes(venv, 150) for venv in venvs]
    p_values += [ks_2samp(*pair).pvalue for pair in zip(*walks, strict=True) if min(map(len, pair))]
    return min(p_values) * len(p_values)


@pytest.mark.parametrize(
    "env_id",
    [DOORKEY, "MiniGrid-MultiRoom-N4-S5-v0", "MiniGrid-Dynamic-Obstacles-6x6-v0", "MiniGrid-LavaCrossingS9N1-v0",
     "MiniGrid-Fetch-5x5-N2-v0", "BabyAI-GoToLocal-v0", "BabyAI-PickupLoc-v0"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is out of date.*")
def test_levels_are_distributed_as_minigrid_s(env_id: str) -> None:
    assert doubt(env_id) > 0.01


def test_the_comparison_finds_a_level_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RlpreError, match=r"2Dlh-v0 of EnvPool is not MiniGrid's: .*; use engine='minigrid'"):
        envs.make_vec("MiniGrid-ObstructedMaze-2Dlh-v0", 2, 0, engine="envpool")
    monkeypatch.setattr(pool, "REFUSED", {})
    assert doubt("MiniGrid-ObstructedMaze-2Dlh-v0") < 1e-6


# As SB3 and Gymnasium expect.


class Single(gym.Env):
    """The only environment of a ``VecEnv``, for Gymnasium's checker."""

    def __init__(self, venv: VecEnv) -> None:
        self.venv, self.observation_space, self.action_space = venv, venv.observation_space, venv.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.venv.seed(seed)
        return self.venv.reset()[0], self.venv.unwrapped.reset_infos[0]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observed, rewards, dones, infos = self.venv.step(np.array([action]))
        truncated = infos[0]["TimeLimit.truncated"]
        shown = infos[0]["terminal_observation"] if dones[0] else observed[0]
        return shown, float(rewards[0]), bool(dones[0] and not truncated), truncated, infos[0]


Worlds = pytest.mark.parametrize("env_id", [DOORKEY, "BabyAI-GoToLocal-v0", LEAPER, PONG])


@Worlds
@pytest.mark.filterwarnings("ignore:.*render_modes.*", "ignore:.*not have a `spec`.*", "ignore:.*reward range.*")
def test_gymnasium_s_checker(env_id: str) -> None:
    check_env(Single(envs.make_vec(env_id, 1, 0, engine="envpool")))


def play(venv: VecEnv, steps: int = 40) -> list[np.ndarray]:
    rng, frames = np.random.default_rng(0), [venv.reset()]
    for _ in range(steps):
        frames.append(venv.step(rng.integers(venv.action_space.n, size=venv.num_envs))[0])
    return frames


@Worlds
def test_a_seed_gives_one_trajectory(env_id: str) -> None:
    def made(seed: int) -> VecEnv:
        return envs.find(env_id, engine="envpool")(4, seed)

    venv = made(0)
    first = play(venv)
    kept = [frame.copy() for frame in first]
    assert same(np.array(first), np.array(play(made(0))))
    assert not same(np.array(first), np.array(play(made(1))))
    venv.seed(1)
    assert same(np.array(play(venv)), np.array(play(made(1))))
    assert same(np.array(first), np.array(kept))  # no observation is overwritten later
    both = np.concatenate([first, play(made(1))], axis=1)
    assert len({both[:, env].tobytes() for env in range(8)}) == 8


def test_a_game_ends_in_the_step_that_shows_the_next_one() -> None:
    venv, rng, ends = envs.make_vec(LEAPER, 8, 0), np.random.default_rng(0), Counter()
    assert (venv.observation_space.shape, venv.observation_space.dtype) == ((3, 64, 64), np.uint8)
    before = venv.reset()
    for _ in range(520):  # games end after 500 steps
        actions = rng.integers(15, size=8)
        actions[0] = 4  # nothing
        shown, _, dones, infos = venv.step(actions)
        for env in np.flatnonzero(dones):
            last = infos[env]["terminal_observation"].astype(int)
            assert np.abs(last - before[env]).mean() < np.abs(last - shown[env]).mean()
            ends[bool(infos[env]["TimeLimit.truncated"]), infos[env]["episode"]["l"] == 500] += 1
        before = shown
    assert ends[True, True] >= 1
    assert ends[False, False] >= 5
    assert set(ends) == {(True, True), (False, False)}


def test_the_state_is_told() -> None:
    venv = envs.make_vec(DOORKEY, 3, 0, engine="envpool", state=True)
    venv.reset()
    ended = 0
    for _ in range(370):
        _, _, dones, infos = venv.step(np.full(3, 1))
        for env, done in enumerate(dones):
            codes = venv.unwrapped.terminal_codes[env] if done else venv.unwrapped.codes[env]
            assert same(infos[env]["state"], one_hot(codes).ravel())
            assert (infos[env]["state"].shape, infos[env]["state"].dtype) == ((980,), np.float32)
            ended += done
            assert not done or same(
                venv.unwrapped.reset_infos[env]["state"], one_hot(venv.unwrapped.codes[env]).ravel()
            )
    assert ended == 3
    pong = envs.make_vec(PONG, 2, 0, state=True)
    pong.reset()
    *_, infos = pong.step(np.array([2, 3]))
    for info in [*infos, *pong.unwrapped.reset_infos]:
        assert (info["state"].shape, info["state"].dtype) == ((128,), np.float32)
        assert same(info["state"], info["ram"].astype(np.float32) / 255)


def test_an_agent_is_trained_on_either_engine() -> None:
    assert isinstance(TrainConfig(engine="envpool").make_env(DOORKEY)(2, 0).unwrapped, pool.GridPool)
    assert not isinstance(TrainConfig().make_env(DOORKEY)(2, 0).unwrapped, pool.GridPool)


def test_one_hot_by_hand() -> None:
    codes = np.array([[[[5, 4, 2 | 4 | 4 << 3], [0, 0, 0]]]], np.uint8)  # a yellow thing of state 2 with flags; unseen
    hot = one_hot(codes)
    assert hot.shape == (1, 1, 2, 20)
    assert np.flatnonzero(hot).tolist() == [5, 10, 11 + 4, 17 + 2, 20, 20 + 11, 20 + 17]  # 10: the agent is there


def test_frames_are_collected_and_ppo_learns_on_features(tmp_path: Path) -> None:
    venv = envs.make_vec(EMPTY, 8, 0, engine="envpool")
    store = rlpre.collect(venv, tmp_path / "frames", 400)
    assert store.distinct > 10
    torch.manual_seed(0)
    encoder = rlpre.Encoder("cnn", rlpre.InputSpec((3, 56, 56)))
    settings = {"n_steps": 32, "batch_size": 256, "learning_rate": 2e-3, "ent_coef": 0.01, "seed": 0}
    model = PPO("MlpPolicy", rlpre.EncodedVecEnv(venv, encoder), **settings).learn(8000)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 0.5


# Bad input.


@pytest.mark.parametrize(
    ("env_id", "given", "message"),
    [
        (DOORKEY, {"engine": "jax"}, "unknown engine 'jax': known: envpool, minigrid"),
        (DOORKEY, {"engine": "envpool", "view": "full"}, "in the partial view alone, without view='full'"),
        (DOORKEY, {"engine": "envpool", "strength": 0.5}, "in the partial view alone, without strength"),
        (DOORKEY, {"engine": "envpool", "tile_size": 0}, "tile_size is 0: give 1 to 256"),
        (DOORKEY, {"engine": "envpool", "tile_size": 8.5}, r"tile_size is 8\.5: give 1 to 256"),
        (DOORKEY, {"engine": "envpool", "palette": "dusk"}, "unknown palette 'dusk'"),
        (DOORKEY, {"engine": "envpool", "n_envs": 10**8}, "need about 10000 GB, this machine has .* fewer"),
        (DOORKEY, {"n_envs": 0}, "n_envs is 0: give at least 1"),
        (DOORKEY, {"view": "distract", "strenght": 0.5}, "unknown argument of .*: 'strenght': did you mean 'strength'"),
        ("MiniGrid-DorKey-6x6-v0", {"engine": "envpool"}, f"did you mean '{DOORKEY}'"),
        ("CoinrunEsy-v0", {}, "did you mean 'CoinrunEasy-v0'"),
        ("Pong-v6", {}, "did you mean 'Pong-v5'"),
        ("CartPole-v1", {"engine": "envpool"}, "EnvPool steps .* here, not CartPole-v1: leave out the engine"),
        ("CartPole-v1", {"view": "full"}, "CartPole-v1 does not take 'view': leave it out"),
        (LEAPER, {"state": True}, "EnvPool does not tell the state of LeaperEasy-v0: leave out state=True, or"),
        (LEAPER, {"tile_size": 16}, "LeaperEasy-v0 does not take 'tile_size': leave it out"),
        (LEAPER, {"n_envs": 10**6}, "1000000 of LeaperEasy-v0 need about 4400 GB"),
    ],
)
def test_bad_input_is_one_sentence(env_id: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        envs.make_vec(**{"env_id": env_id, "n_envs": 2, "seed": 0, **given})


@pytest.mark.parametrize("actions", [[7, 0], [-1, 0], [0], [[0, 0]]])
def test_wrong_actions_are_refused(actions: list[Any]) -> None:
    venv = envs.make_vec(DOORKEY, 2, 0, engine="envpool")
    venv.reset()
    with pytest.raises(RlpreError, match="give 2 numbers from 0 to 6"):
        venv.step(np.array(actions))


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError(reason)

    monkeypatch.setattr(envpool, "make_gymnasium", missing)
    reason = "libQt5Core.so.5: cannot open shared object file"
    with pytest.raises(RlpreError, match="needs Qt 5: install Debian's packages libqt5core5a and libqt5gui5"):
        envs.make_vec(LEAPER, 2, 0)
    reason = "libother.so.1: cannot open shared object file"
    with pytest.raises(RlpreError, match=r"Pong-v5 needs a library that is missing \(libother\.so\.1"):
        envs.make_vec(PONG, 2, 0)
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(RlpreError, match="install it with 'pip install envpool'"):
        envs.make_vec(PONG, 2, 0)
