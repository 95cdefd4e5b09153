"""Advantages are normalised over a rollout, but noise is not blown up."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import odd_encoder, worlds
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from rlpre import RlpreError
from rlpre.sb3 import EncodedVecEnv, floored_advantages
from rlpre.sb3.advantages import FlooredRolloutBuffer


def filled(buffer: RolloutBuffer, rewards: list[float]) -> RolloutBuffer:
    """One environment, values 0, no episode ends."""
    for reward in rewards:
        zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
        buffer.add(zero[None], zero[None], np.full(1, reward), one, torch.zeros(1), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.zeros(1), np.zeros(1))
    return buffer


def make(kind: type[RolloutBuffer], size: int, **arguments: float) -> RolloutBuffer:
    space = spaces.Box(-1, 1, (1,))
    return kind(size, space, spaces.Discrete(2), device="cpu", gamma=0.0, gae_lambda=1.0, n_envs=1, **arguments)


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([1.0, 3.0], [-1.0, 1.0]),  # mean 2, SD 1: as SB3 normalises
        ([0.01, 0.03], [-0.2, 0.2]),  # mean .02, SD .01: divided by the floor
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_small_advantages_are_divided_by_the_floor(rewards: list[float], advantages: list[float]) -> None:
    buffer = filled(make(FlooredRolloutBuffer, 2, floor=0.05), rewards)
    np.testing.assert_allclose(buffer.advantages[:, 0], advantages, rtol=1e-5, atol=1e-7)
    assert np.array_equal(buffer.returns, filled(make(RolloutBuffer, 2), rewards).returns)


class Rewardless(VecEnvWrapper):
    """A task whose reward nobody has found yet."""

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, np.zeros_like(rewards), dones, infos


def drifted(**arguments: Any) -> tuple[PPO, float]:
    """PPO without rewards: how many nats its policy is from uniform in the end."""
    settings = {"n_steps": 32, "batch_size": 32, "ent_coef": 0.01, "learning_rate": 1e-3, "seed": 0, "device": "cpu"}
    model = PPO("MlpPolicy", Rewardless(EncodedVecEnv(worlds(), odd_encoder())), **settings, **arguments)
    model.learn(2048)
    entropy = model.policy.get_distribution(torch.as_tensor(model.env.reset())).entropy()
    return model, math.log(4) - float(entropy.mean().detach())


def test_before_the_first_reward_the_policy_stays_random(tmp_path: Path) -> None:
    """SB3's normalisation lets it drift; with a floor the entropy bonus holds it."""
    model, steady = drifted(**floored_advantages())
    assert steady < 0.2 * drifted()[1]
    model.save(tmp_path / "model")
    assert PPO.load(tmp_path / "model", env=model.env).rollout_buffer.floor == 0.05


def test_dicts_are_floored_as_arrays_are() -> None:
    """The same task, bare and as the only key of a Dict, gives the same advantages."""
    buffers = []
    for policy, wrap in (("MlpPolicy", lambda venv: venv), ("MultiInputPolicy", OneKey)):
        venv = wrap(EncodedVecEnv(worlds(), odd_encoder()))
        model = PPO(policy, venv, n_steps=16, batch_size=16, seed=0, device="cpu", **floored_advantages(5))
        buffers.append(model.learn(64).rollout_buffer)
    assert isinstance(buffers[1].observations, dict)
    assert np.array_equal(buffers[0].advantages, buffers[1].advantages)
    assert abs(buffers[1].advantages.mean()) < 1e-6
    assert 0 < buffers[1].advantages.std() < 0.5


class OneKey(VecEnvWrapper):
    """Observations in a Dict."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, spaces.Dict({"features": venv.observation_space}))

    def reset(self) -> dict[str, np.ndarray]:
        return {"features": self.venv.reset()}

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = {"features": info["terminal_observation"]}
        return {"features": observations}, rewards, dones, infos


def test_a_floor_is_positive() -> None:
    with pytest.raises(RlpreError, match="floor is 0: it must be a positive number"):
        floored_advantages(0)
