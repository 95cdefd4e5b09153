"""Vector environments of Gymnasium, ale_py and EnvPool step as SB3's own `DummyVecEnv` does."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from rlpre.data.adapters import VectorVecEnv, as_vec_env
from rlpre.errors import RlpreError

Modes = pytest.mark.parametrize("mode", list(AutoresetMode))


class Counter(gym.Env[Any, Any]):
    """Shows (episode, step); ends after 3 steps, by time in every second episode."""

    action_space = spaces.Discrete(3)

    def __init__(self, as_dict: bool = False, longer: int = 0) -> None:
        shown = spaces.Box(0, 255, (2,), np.float32)
        self.observation_space = spaces.Dict({"a": shown, "b": spaces.Discrete(9)}) if as_dict else shown
        self.as_dict, self.length, self.episode = as_dict, 3 + longer, 0

    def _look(self) -> Any:
        shown = np.array([self.episode, self.time], np.float32)
        return {"a": shown, "b": np.int64(self.time)} if self.as_dict else shown

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._look(), {"mission": f"episode {self.episode}"}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        end, by_time = self.time == self.length, self.episode % 2 == 0
        return self._look(), float(action), end and not by_time, end and by_time, {"time": self.time}


def makers(as_dict: bool) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [lambda longer=longer: Counter(as_dict, longer) for longer in (0, 1, 2)]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    return bool(np.array_equal(first, second))


@Modes
@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_steps_as_sb3(kind: type, as_dict: bool, mode: AutoresetMode) -> None:
    expected, ours = DummyVecEnv(makers(as_dict)), as_vec_env(kind(makers(as_dict), autoreset_mode=mode))
    assert isinstance(ours, VecMonitor)
    assert (ours.observation_space, ours.action_space) == (expected.observation_space, expected.action_space)
    for venv in (expected, ours):
        venv.seed(3)
    assert same(expected.reset(), ours.reset())
    assert [info["mission"] for info in ours.unwrapped.reset_infos] == ["episode 1"] * 3
    rng, ends = np.random.default_rng(0), 0
    for _ in range(20):
        actions = rng.integers(0, 3, 3)
        one, other = expected.step(actions), ours.step(actions)
        assert all(same(*pair) for pair in zip(one[:3], other[:3], strict=True))
        for wanted, info, done in zip(one[3], other[3], one[2], strict=True):
            assert info["TimeLimit.truncated"] == wanted["TimeLimit.truncated"]
            assert info["time"] == wanted["time"]
            assert ("terminal_observation" in info) == done
            if done:
                assert same(info["terminal_observation"], wanted["terminal_observation"])
                ends += 1
        assert [info["mission"] for info in ours.unwrapped.reset_infos] == [
            info["mission"] for info in expected.reset_infos
        ]
    assert ends > 10
    ours.close()


def test_a_single_environment_and_a_vec_env() -> None:
    venv = as_vec_env(Counter())
    assert as_vec_env(venv) is venv
    assert venv.num_envs == 1
    venv.reset()
    for _ in range(3):
        _, _, done, infos = venv.step(np.array([1]))
    assert done.all()
    assert infos[0]["episode"]["r"] == 3


def test_ppo_learns_on_a_gymnasium_vector_environment() -> None:
    venv = as_vec_env(gym.make_vec("CartPole-v1", 4))
    model = PPO("MlpPolicy", venv, n_steps=64, batch_size=64, seed=0, device="cpu").learn(8192)
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) > 60


def test_attributes_and_methods_reach_the_environments() -> None:
    venv = VectorVecEnv(SyncVectorEnv(makers(False)))
    assert venv.get_attr("length") == [3, 4, 5]
    venv.reset()
    assert [int(shown[1]) for shown in venv.env_method("_look", indices=[0, 2])] == [0, 0]
    assert venv.env_is_wrapped(gym.Wrapper) == [False] * 3
    with pytest.raises(RlpreError, match="SyncVectorEnv cannot set 'length'"):
        venv.set_attr("length", 2)


@pytest.mark.parametrize("thing", [None, "CartPole-v1", object()])
def test_other_things_are_one_sentence(thing: object) -> None:
    with pytest.raises(RlpreError, match="is not an environment that rlpre reads"):
        as_vec_env(thing)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_ale(mode: AutoresetMode) -> None:
    vector_env = pytest.importorskip("ale_py.vector_env")
    venv = as_vec_env(vector_env.AtariVectorEnv("pong", 2, autoreset_mode=mode, max_num_frames_per_episode=200))
    venv.seed(0)
    assert venv.reset().shape == (2, 4, 84, 84)
    ends = 0
    for _ in range(160):
        observed, _, done, infos = venv.step(np.array([0, 1]))
        assert observed.shape == (2, 4, 84, 84)
        for env in np.flatnonzero(done):
            ends += 1
            assert infos[env]["terminal_observation"].shape == (4, 84, 84)
            assert not np.array_equal(infos[env]["terminal_observation"], observed[env])
            assert infos[env]["TimeLimit.truncated"]
    assert ends >= 4


def test_envpool() -> None:
    envpool = pytest.importorskip("envpool")
    venv = as_vec_env(envpool.make_gymnasium("CartPole-v1", num_envs=3, seed=0))
    with pytest.warns(UserWarning, match="an EnvPool is seeded when it is made"):
        venv.seed(1)
    assert venv.reset().shape == (3, 4)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(100):
        observed, _, done, infos = venv.step(rng.integers(0, 2, 3))
        for env in np.flatnonzero(done):
            ends += 1
            last = infos[env]["terminal_observation"]
            assert abs(last[2]) > 0.2 or abs(last[0]) > 2.4  # the pole has fallen
            assert np.abs(observed[env]).max() <= 0.05  # CartPole's first observations
        assert np.abs(observed[:, 2]).max() < 0.25
    assert ends > 3
    with pytest.raises(RlpreError, match=r"asynchronous \(batch_size=2 of num_envs=3\)"):
        as_vec_env(envpool.make_gymnasium("CartPole-v1", num_envs=3, batch_size=2))
    with pytest.raises(RlpreError, match=r"make it with envpool\.make_gymnasium"):
        as_vec_env(envpool.make_dm("CartPole-v1", num_envs=2))
