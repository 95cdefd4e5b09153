"""A frozen encoder in front of the policy: each frame is encoded once, and the buffers hold features."""

import copy
from typing import TypeVar

import numpy as np
import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from rlpre.device import resolve_device
from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.encoders.checkpoint import freeze
from rlpre.errors import RlpreError, at_least
from rlpre.sb3.features import FeatureSpace, FrameMemory
from rlpre.sb3.readers import Reader, Stack, Steps

__all__ = ["EncodedVecEnv", "FeatureSpace"]  # saved models look for the space here

E = TypeVar("E", Encoder, SequenceEncoder)


def frozen(encoder: E, device: torch.device | str) -> E:
    """A copy of ``encoder`` that never trains, on ``device``."""
    encoder = copy.deepcopy(encoder).eval()
    freeze(encoder)
    return encoder.to(resolve_device(device))


class FrozenVecEnv(VecEnvWrapper):
    """Encodes each frame once; the reader makes observations of the features."""

    encoder: Encoder | SequenceEncoder

    def __init__(self, venv: VecEnv, memory: FrameMemory, reader: Reader) -> None:
        super().__init__(venv, observation_space=reader.space)
        self._memory, self._reader = memory, reader
        self._actions = np.zeros(self.num_envs, np.int64)

    @property
    def frames(self) -> VecEnvObs:
        """The current observations with pixels, as a fused policy reads them."""
        return self._reader.frames()

    def reset(self) -> VecEnvObs:
        """Features of the first observations, as ``observation_space`` describes them."""
        observations = self.venv.reset()
        features = self._memory.encode(self._reader.image(observations))
        return self._reader.read(observations, features, self._actions, np.ones(self.num_envs, bool))

    def step_async(self, actions: np.ndarray) -> None:
        """As in SB3."""
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3, with features in the observations and in each ``infos[i]["terminal_observation"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        last = {i: info["terminal_observation"] for i, info in enumerate(infos) if "terminal_observation" in info}
        image, count = self._reader.image, self.num_envs
        features = self._memory.encode([*image(observations), *map(image, last.values())])
        for i, terminal in zip(last, self._reader.ended(last, features[count:], self._actions), strict=True):
            infos[i]["terminal_observation"] = terminal
        return self._reader.read(observations, features[:count], self._actions, dones), rewards, dones, infos


class EncodedVecEnv(FrozenVecEnv):
    """Gives SB3 the features of a frozen encoder instead of frames; train ``"MlpPolicy"`` on it.

    A frozen encoder inside the policy runs 1 + n_epochs times per frame. Here it runs once, and not again for a frame
    that it has seen before (nine in ten on a grid world). Terminal observations are encoded too. `fuse` puts encoder
    and trained policy together again.

    Of a Dict the image gives way to its features and the other keys pass; train ``"MultiInputPolicy"`` on it.

    A `SequenceEncoder` goes step by step, from what it kept of the steps before; it also reads the actions, and
    missions as `HistoryVecEnv` does. A GRU remembers the whole episode so.

    Args:
        venv: gives frames as ``encoder.input`` describes them, or a Dict with such an image; for a `SequenceEncoder`
            frames as ``encoder.frames.input`` describes them.
        encoder: copied; training it later does not change the features.
        device: where to encode.
        stack: give the features of the last so many frames, oldest first. Before an episode's first frame stand black
            ones, as in SB3's ``VecFrameStack``; what other keys a Dict has are not stacked.
        image_key: the image of a Dict, where several fit.

    Attributes:
        encoder: the frozen copy.
        frames: the current observations with pixels, as a fused policy reads them; the image, or the Dict's, has shape
            (num_envs, stack * C, H, W). For a `SequenceEncoder`, windows of pixels as of `HistoryVecEnv`.

    Raises:
        RlpreError: if the observation space is not one that the encoder reads, or the device is not there; for a
            `SequenceEncoder` also if the actions are not its own, or it is not causal.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: Encoder | SequenceEncoder,
        device: torch.device | str = "auto",
        stack: int = 1,
        image_key: str | None = None,
    ) -> None:
        self.stack = stack
        at_least(self, stack=1)
        reader: Reader
        if isinstance(encoder, SequenceEncoder):
            if stack > 1 or image_key is not None:
                raise RlpreError("a SequenceEncoder reads single frames and remembers: leave out stack and image_key")
            self.encoder = sequence = frozen(encoder, device)
            memory = FrameMemory(sequence.frames)
            reader = Steps(venv, sequence)
        else:
            self.encoder = single = frozen(encoder, device)
            memory = FrameMemory(single)
            reader = Stack(venv, single, memory, stack, image_key)
        super().__init__(venv, memory, reader)
