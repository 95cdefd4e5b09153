"""A tiny pixel task for the plug's tests, and the extractor that a user of plain SB3 would write."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from torch import Tensor, nn

from rlpre import HistoryVecEnv, RlpreError
from rlpre.encoders import ARCHITECTURES, Encoder, InputSpec, SequenceEncoder

Algorithm = type[BaseAlgorithm]
FRAME = InputSpec((3, 36, 36))
OFF_POLICY = {"buffer_size": 200, "learning_starts": 4, "train_freq": 2, "batch_size": 8, "tau": 0.005}
TINY: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    A2C: {"n_steps": 4},
    DQN: {**OFF_POLICY, "target_update_interval": 4},
    SAC: OFF_POLICY,
    RecurrentPPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    QRDQN: {**OFF_POLICY, "target_update_interval": 4},
    MaskablePPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
}
HEADS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    SAC: {"net_arch": [16]},
    RecurrentPPO: {"lstm_hidden_size": 8, "n_lstm_layers": 2},
    QRDQN: {"n_quantiles": 5},
}
CORE = [PPO, A2C, DQN]
WAYS: dict[str, dict[str, Any]] = {
    "scratch": {"mode": "scratch"},
    "random": {"mode": "random"},
    "frozen": {"mode": "frozen"},
    "finetuned": {"mode": "finetuned"},
    "partial": {"mode": "partial", "stages": 2},
    "anchored": {"mode": "anchored", "anchor": 0.5},
    "warmed up": {"mode": "finetuned", "warmup_updates": 2},
}


def dict_space(seed: int | None = None, **others: spaces.Space[Any]) -> spaces.Dict:
    """Frames and three more keys, and ``others``."""
    parts = {"direction": spaces.Discrete(4), "mission": spaces.MultiBinary((2, 3))}
    velocity = spaces.Box(-1, 1, (2, 2))
    return spaces.Dict({"image": FRAME.space, "velocity": velocity, **parts, **others}, seed=seed)


class Quadrant(gym.Env[Any, Any]):
    """One quadrant of a noisy frame is bright; reward 1 for naming it; truncated after ``length`` steps.

    With ``continuous`` actions, reward is how far their two numbers point to it. With ``parts``, observations are a
    Dict: the frame is its "image", the other keys are noise. With ``last``, channels are. The quadrant after the
    bright one is masked.
    """

    def __init__(
        self,
        length: int = 6,
        noise: int = 60,
        continuous: bool = False,
        parts: bool = False,
        last: bool = False,
        dtype: type = np.uint8,
    ) -> None:
        self.action_space = spaces.Box(-1, 1, (2,), np.float32) if continuous else spaces.Discrete(4)
        self.observation_space: spaces.Space[Any] = dict_space(seed=0) if parts else FRAME.space
        self.length, self.noise, self.last, self.dtype = length, noise, last, dtype
        if last or dtype is not np.uint8:
            image = spaces.Box(0, 255, (36, 36, 3) if last else FRAME.shape, dtype)
            self.observation_space = dict_space(seed=0, image=image) if parts else image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if isinstance(self.action_space, spaces.Box):
            reward = float(np.mean(action * (2 * np.array(divmod(self.quadrant, 2)) - 1)))
        else:
            reward = float(action == self.quadrant)
        self.time += 1
        return self._observe(), reward, False, self.time >= self.length, {}

    def action_masks(self) -> np.ndarray:
        return np.arange(4) != (self.quadrant + 1) % 4

    def _observe(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {**self.observation_space.sample(), "image": self._frame()}
        return self._frame()

    def _frame(self) -> np.ndarray:
        self.quadrant = int(self.np_random.integers(4))
        frame = self.np_random.integers(0, self.noise + 1, FRAME.shape, dtype=np.uint8)
        row, column = divmod(self.quadrant, 2)
        frame[:, 18 * row : 18 * row + 18, 18 * column : 18 * column + 18] += 180
        return (frame.transpose(1, 2, 0) if self.last else frame).astype(self.dtype)


class Recall(Quadrant):
    """The quadrant is bright in the first frame alone; reward 1 for naming it in the last of ``length``."""

    def __init__(self, length: int = 2) -> None:
        super().__init__(length, noise=0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        ended = self.time == self.length
        return np.zeros(FRAME.shape, np.uint8), float(ended and action == self.quadrant), ended, False, {}


def worlds(count: int = 2, seed: int = 0, **arguments: Any) -> DummyVecEnv:
    """``count`` quadrant tasks, seeded."""
    venv = DummyVecEnv([lambda: Quadrant(**arguments)] * count)
    venv.seed(seed)
    return venv


class Matrices(VecEnvWrapper):
    """Continuous quadrant tasks whose actions are a matrix of some dtype, as of two joints with one motor each."""

    def __init__(self, count: int, dtype: Any, seed: int = 0, **arguments: Any) -> None:
        venv = worlds(count, seed, continuous=True, **arguments)
        super().__init__(venv, action_space=spaces.Box(-1, 1, (1, 2), dtype))

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(actions.reshape(self.num_envs, 2))

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def reset(self) -> Any:
        return self.venv.reset()


def worlds_for(algorithm: type[BaseAlgorithm], count: int = 2, seed: int = 0, **arguments: Any) -> DummyVecEnv:
    """Quadrant tasks with the actions that an algorithm can take."""
    return worlds(count, seed, continuous=algorithm is SAC, **arguments)


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


def odd_encoder(shift: float = 0.0) -> Encoder:
    """An encoder whose weights no initialisation gives: half of an orthogonal start, shifted."""
    torch.manual_seed(0)
    encoder = Encoder("cnn", FRAME, features=16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5).add_(0.01).add_(shift)
    return encoder


def normed_encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Two stages with batch norm and dropout, whose running statistics are not those of the task."""

    def layers(channels: int, height: int, width: int) -> list[nn.Module]:
        first = nn.Sequential(nn.Conv2d(channels, 4, kernel_size=12, stride=12), nn.BatchNorm2d(4), nn.ReLU())
        return [first, nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8))]

    monkeypatch.setitem(ARCHITECTURES, "normed", layers)
    torch.manual_seed(0)
    encoder = Encoder("normed", FRAME)
    encoder.train()(torch.randint(0, 256, (8, *FRAME.shape)))
    return encoder


def odd_sequence(backbone: str = "transformer", window: int = 5, **arguments: Any) -> SequenceEncoder:
    """As `odd_encoder`, of sequences; what standardises its features is odd too."""
    frames = odd_encoder()
    encoder = SequenceEncoder(backbone, frames, 4, width=16, heads=2, window=window, **arguments).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5).add_(0.01)
    encoder.standardise(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
    return encoder


def build(
    algorithm: type[BaseAlgorithm],
    policy_kwargs: dict[str, Any],
    seed: int = 0,
    venv: VecEnv | None = None,
    policy: str = "Cnn",
    **arguments: Any,
) -> BaseAlgorithm:
    """A small model on the quadrant task, or on ``venv``."""
    settings = {**TINY.get(algorithm, {"n_steps": 8, "batch_size": 8}), "seed": seed, "device": "cpu", **arguments}
    policy += "LstmPolicy" if algorithm is RecurrentPPO else "Policy"
    heads = {**HEADS.get(algorithm, {}), **policy_kwargs}
    return algorithm(policy, worlds_for(algorithm) if venv is None else venv, policy_kwargs=heads, **settings)


def encoders_in(model: BaseAlgorithm) -> list[Encoder]:
    """Every distinct encoder in a model's policy (a second one in a target network)."""
    return [module for module in model.policy.modules() if isinstance(module, Encoder)]


def same(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules' states are equal bit for bit."""
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def other_frames() -> SequenceEncoder:
    """As `odd_sequence`, but its encoder of frames differs by one number."""
    encoder = odd_sequence()
    encoder.frames.feature_mean[0] += 1
    return encoder


def history(encoder: SequenceEncoder, seed: int = 0, **arguments: Any) -> HistoryVecEnv:
    """Windows of the quadrant task."""
    return HistoryVecEnv(worlds(seed=seed, **arguments), encoder, device="cpu")


def refuse(named: str, call: Callable[[], object]) -> None:
    """Checks that ``call`` raises an `RlpreError` of one line that matches ``named``."""
    with pytest.raises(RlpreError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)
