"""The true state in place of the image: which state comes when, and what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pixel_world import refuse
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from rlpre import StateVecEnv
from rlpre.sb3.state import StatelessVecEnv, tells_state

IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


class Blank(gym.Env[Any, Any]):
    """The image is noise; the state is (episode, time, answer), and reward 1 for giving the answer."""

    def __init__(self, length: int = 3, parts: bool = False) -> None:
        self.length, self.parts, self.episode = length, parts, 0
        state = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = spaces.Dict({"image": IMAGE, "state": state}) if parts else IMAGE
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.answer)
        self.time += 1
        observation, info = self._observe()
        return observation, reward, self.time == self.length, False, info

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        self.answer = int(self.np_random.integers(2))
        state = np.array([self.episode, self.time, self.answer], np.float32)
        image = self.np_random.integers(0, 256, IMAGE.shape, np.uint8)
        return ({"image": image, "state": state}, {}) if self.parts else (image, {"state": state})


class Odd(Blank):
    """Tells ``states`` one after the other; None is not told."""

    def __init__(self, *states: Any) -> None:
        super().__init__()
        self.states = list(states)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        image, _ = super()._observe()
        state = self.states.pop(0)
        return image, {} if state is None else {"state": state}


def blanks(n_envs: int, seed: int, **arguments: Any) -> VecMonitor:
    venv = DummyVecEnv([lambda: Blank(**arguments)] * n_envs)
    venv.seed(seed)
    return VecMonitor(venv)


def inside(kind: str) -> Any:
    """Two environments, the second with longer episodes, as different libraries step them."""
    makers = [Blank, lambda: Blank(length=4)]
    if kind == "dict":
        return DummyVecEnv([lambda: Blank(parts=True), lambda: Blank(length=4, parts=True)])
    if kind == "subproc":
        return SubprocVecEnv(makers, start_method="fork")
    if kind == "dummy":
        return DummyVecEnv(makers)
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode(kind))


@pytest.mark.parametrize("kind", ["dummy", "subproc", "dict", "SameStep", "NextStep", "Disabled"])
def test_states_of_steps_and_of_ends(kind: str) -> None:
    venv = StateVecEnv(inside(kind))
    assert venv.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    first = venv.reset()[0, 0]  # the reset that looked for the state was episode 1
    assert first == 2
    times, episodes = np.zeros(2), np.full(2, first)
    for _ in range(9):
        observations, _, dones, infos = venv.step(np.zeros(2, int))
        times += 1
        for i, length in enumerate((3, 4)):
            assert dones[i] == (times[i] == length)
            if dones[i]:
                assert infos[i]["terminal_observation"][:2].tolist() == [episodes[i], length]
                times[i], episodes[i] = 0, episodes[i] + 1
        assert observations.dtype == np.float32
        assert observations[:, :2].tolist() == np.stack([episodes, times], 1).tolist()
    venv.close()


def test_ppo_learns_from_the_state_what_no_image_shows() -> None:
    settings = {"n_steps": 32, "batch_size": 64, "learning_rate": 1e-2, "seed": 0, "device": "cpu"}
    model = PPO("MlpPolicy", StateVecEnv(blanks(8, 0)), policy_kwargs={"net_arch": [16]}, **settings)
    model.learn(4096)
    mean, _ = evaluate_policy(model, StateVecEnv(blanks(4, 1)), n_eval_episodes=20)
    assert mean > 2.7  # of 3; an agent that sees the image gets 1.5


@pytest.mark.parametrize(
    ("states", "named"),
    [
        ((None,), r"environment 0 does not tell its true state: put an array into info\['state'\]"),
        ((np.ones(2), np.ones(2), None), "environment 0 does not tell its true state"),
        ((np.ones(2), np.ones(3)), "environment 0 has 3 numbers, 2 were there before: give it a constant length"),
        ((np.array([1, np.nan]),), r"environment 0 is not finite: \[ 1. nan\]"),
        (("left",), "the state of environment 0 is 'left': give an array of numbers"),
        ((np.ones((2, 2)),), r"the state of environment 0 has shape \(2, 2\): flatten it to one axis"),
        ((np.ones(0),), r"has shape \(0,\)"),
    ],
)
def test_bad_states(states: tuple[Any, ...], named: str) -> None:
    def play() -> None:
        venv = StateVecEnv(DummyVecEnv([lambda: Odd(*states)]))
        venv.reset()
        venv.step(np.zeros(1, int))

    refuse(named, play)


def test_environments_must_tell_states_of_one_length() -> None:
    makers = [lambda: Odd(np.ones(2)), lambda: Odd(np.ones(3))]
    refuse("environment 1 has 3 numbers, 2 were there before", lambda: StateVecEnv(DummyVecEnv(makers)))


def test_what_a_state_is_hidden_from() -> None:
    venv: VecEnv = StatelessVecEnv(blanks(1, 0, length=1, parts=True))
    assert list(venv.observation_space.spaces) == ["image"] == list(venv.reset())  # type: ignore[attr-defined]
    observations, _, _, (info,) = venv.step(np.zeros(1, int))
    assert list(observations) == ["image"] == list(info["terminal_observation"])


def test_which_environments_tell_their_state() -> None:
    assert tells_state(blanks(2, 0))
    assert not tells_state(blanks(2, 0, parts=True)), "other agents would see it, so that one has to ask for an oracle"
    assert not tells_state(DummyVecEnv([lambda: Odd("text")]))
