"""A frozen encoder in front of the policy: each frame is encoded once, and the buffers hold features."""

import copy
import hashlib
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from rlpre.device import resolve_device
from rlpre.encoders import Encoder
from rlpre.encoders.checkpoint import freeze
from rlpre.errors import at_least
from rlpre.sb3.observation import find_image, with_image

REMEMBERED = 1 << 16  # frames; 128 features each make 40 MB


class FeatureSpace(spaces.Box):
    """Feature vectors of one particular encoder: float32, (stack * num_features,).

    Spaces of different encoders differ, so SB3 refuses to run a policy on the features of an encoder that it was not
    trained on, and so does `fuse`. The mark travels in the model's zip.
    """

    def __init__(self, encoder: Encoder, stack: int = 1) -> None:
        super().__init__(-np.inf, np.inf, (stack * encoder.num_features,), np.float32)
        self.encoder_hash = encoder.fingerprint()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpace) and super().__eq__(other) and self.encoder_hash == other.encoder_hash

    def __repr__(self) -> str:
        return f"FeatureSpace({self.shape[0]}, encoder {self.encoder_hash[:12]})"


class History:
    """The last ``depth`` entries of each environment, joined oldest first; blank where an episode has had fewer.

    Args:
        num_envs: number of environments.
        depth: number of entries.
        blank: (size, ...), an entry that is none.
    """

    def __init__(self, num_envs: int, depth: int, blank: np.ndarray) -> None:
        self.size = len(blank)
        self.empty = np.concatenate([blank] * depth)
        self.joined = np.stack([self.empty] * num_envs)

    def append(self, new: np.ndarray, starts: np.ndarray | slice) -> np.ndarray:
        """Takes a new entry of each environment, in some of which an episode starts: (num_envs, depth * size, ...)."""
        older = self.joined[:, self.size :].copy()
        older[starts] = self.empty[self.size :]
        self.joined = np.concatenate([older, new], axis=1)
        return self.joined

    def ending(self, env: int, last: np.ndarray) -> np.ndarray:
        """What one environment's entries would be after ``last``: (depth * size, ...)."""
        return np.concatenate([self.joined[env, self.size :], last])


class EncodedVecEnv(VecEnvWrapper):
    """Gives SB3 the features of a frozen encoder instead of frames; train ``"MlpPolicy"`` on it.

    A frozen encoder inside the policy runs 1 + n_epochs times per frame. Here it runs once, and not again for a frame
    that it has seen before (nine in ten on a grid world). Terminal observations are encoded too. `fuse` puts encoder
    and trained policy together again.

    Of a Dict the image gives way to its features and the other keys pass; train ``"MultiInputPolicy"`` on it.

    Args:
        venv: gives frames as ``encoder.input`` describes them, or a Dict with such an image.
        encoder: copied; training it later does not change the features.
        device: where to encode.
        stack: give the features of the last so many frames, oldest first. Before an episode's first frame stand black
            ones, as in SB3's ``VecFrameStack``; what other keys a Dict has are not stacked.
        image_key: the image of a Dict, where several fit.

    Attributes:
        encoder: the frozen copy.
        frames: the current observations with pixels, as a fused policy reads them; the image, or the Dict's, has shape
            (num_envs, stack * C, H, W).

    Raises:
        RlpreError: if the observation space is not one that the encoder reads, or the device is not there.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: Encoder,
        device: torch.device | str = "auto",
        stack: int = 1,
        image_key: str | None = None,
    ) -> None:
        self.stack = stack
        at_least(self, stack=1)
        self.image_key = find_image(venv.observation_space, encoder.input, key=image_key)
        features = FeatureSpace(encoder, stack)
        super().__init__(venv, observation_space=with_image(venv.observation_space, self.image_key, features))
        self.device = resolve_device(device)
        self.encoder = copy.deepcopy(encoder).to(self.device).eval()
        freeze(self.encoder)
        self._seen: dict[bytes, np.ndarray] = {}
        black = np.zeros(encoder.input.shape, encoder.input.dtype)
        self._images = History(self.num_envs, stack, black)
        self._features = History(self.num_envs, stack, self._encode([black])[0])
        self._observations: VecEnvObs = np.empty(0)

    @property
    def frames(self) -> VecEnvObs:
        """The current observations with pixels."""
        return self._with_image(self._observations, self._images.joined)

    def reset(self) -> VecEnvObs:
        """Features of the first observations: (num_envs, stack * num_features) float32, or a Dict that has them."""
        observations = self.venv.reset()
        return self._observed(observations, self._encode(self._image(observations)), starts=slice(None))

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3, with features in the observations and in each ``infos[i]["terminal_observation"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        last = {i: info["terminal_observation"] for i, info in enumerate(infos) if "terminal_observation" in info}
        features = self._encode([*self._image(observations), *map(self._image, last.values())])
        for (i, terminal), feature in zip(last.items(), features[self.num_envs :], strict=True):
            infos[i]["terminal_observation"] = self._with_image(terminal, self._features.ending(i, feature))
        return self._observed(observations, features[: self.num_envs], starts=dones), rewards, dones, infos

    def _observed(self, observations: VecEnvObs, features: np.ndarray, starts: np.ndarray | slice) -> VecEnvObs:
        self._observations = observations
        self._images.append(self._image(observations), starts)
        return self._with_image(observations, self._features.append(features, starts))

    def _image(self, observation: Any) -> np.ndarray:
        return cast(np.ndarray, observation if self.image_key is None else observation[self.image_key])

    def _with_image(self, observation: Any, image: np.ndarray) -> VecEnvObs:
        return image if self.image_key is None else {**observation, self.image_key: image}

    def _encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        frames = [np.ascontiguousarray(frame) for frame in frames]
        keys = [hashlib.sha256(frame.data).digest() for frame in frames]
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._seen}
        if new:
            self._seen.update(zip(new, self._run(np.stack(list(new.values()))), strict=True))
        return np.stack([self._seen[key] for key in keys])

    @torch.inference_mode()
    def _run(self, frames: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(frames)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return cast(np.ndarray, self.encoder(batch).float().cpu().numpy())
