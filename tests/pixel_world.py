"""A tiny pixel task for the plug's tests, and the extractor that a user of plain SB3 would write."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from rlpre.encoders import Encoder, InputSpec

FRAME = InputSpec((3, 36, 36))
TINY: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    A2C: {"n_steps": 8},
    DQN: {"buffer_size": 200, "learning_starts": 4, "train_freq": 2, "target_update_interval": 4, "tau": 0.005},
}


class Quadrant(gym.Env[np.ndarray, int]):
    """One quadrant of a noisy frame is bright; reward 1 for naming it; truncated after ``length`` steps."""

    def __init__(self, length: int = 6, noise: int = 60) -> None:
        self.observation_space, self.action_space = FRAME.space, spaces.Discrete(4)
        self.length, self.noise = length, noise

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.quadrant)
        self.time += 1
        return self._frame(), reward, False, self.time >= self.length, {}

    def _frame(self) -> np.ndarray:
        self.quadrant = int(self.np_random.integers(4))
        frame = self.np_random.integers(0, self.noise + 1, FRAME.shape, dtype=np.uint8)
        row, column = divmod(self.quadrant, 2)
        frame[:, 18 * row : 18 * row + 18, 18 * column : 18 * column + 18] += 180
        return frame


def worlds(count: int = 2, seed: int = 0, **arguments: Any) -> DummyVecEnv:
    """``count`` quadrant tasks, seeded."""
    venv = DummyVecEnv([lambda: Quadrant(**arguments)] * count)
    venv.seed(seed)
    return venv


class PlainExtractor(BaseFeaturesExtractor):
    """What one writes without rlpre: the encoder, or the path to it, as an argument; frozen by ``requires_grad``."""

    def __init__(self, observation_space: spaces.Box, encoder: Encoder | Path) -> None:
        encoder = Encoder.load(encoder) if isinstance(encoder, Path) else copy.deepcopy(encoder)
        super().__init__(observation_space, encoder.num_features)
        self.encoder = encoder.requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        return self.encoder(observations)


def plain(encoder: Encoder | Path, **others: Any) -> dict[str, Any]:
    """Policy arguments of a plain-SB3 user."""
    extractor = {"features_extractor_class": PlainExtractor, "features_extractor_kwargs": {"encoder": encoder}}
    return {**extractor, "normalize_images": False, **others}


def odd_encoder() -> Encoder:
    """An encoder whose weights no initialisation gives: half of an orthogonal start, shifted."""
    torch.manual_seed(0)
    encoder = Encoder("cnn", FRAME, features=16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5).add_(0.01)
    return encoder


def build(
    algorithm: type[BaseAlgorithm], policy_kwargs: dict[str, Any], seed: int = 0, **arguments: Any
) -> BaseAlgorithm:
    """A small model on the quadrant task."""
    settings = {**TINY[algorithm], "seed": seed, "device": "cpu", **arguments}
    return algorithm("CnnPolicy", worlds(), policy_kwargs=policy_kwargs, **settings)


def encoders_in(model: BaseAlgorithm) -> list[Encoder]:
    """Every distinct encoder in a model's policy (DQN has a second one in its target network)."""
    return [module for module in model.policy.modules() if isinstance(module, Encoder)]


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules' states are equal bit for bit."""
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
