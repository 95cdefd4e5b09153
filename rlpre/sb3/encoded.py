"""A frozen encoder in front of the policy: each frame is encoded once, and the buffers hold features."""

import copy
import hashlib
import json
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from rlpre.device import resolve_device
from rlpre.encoders import Encoder
from rlpre.sb3.extractor import freeze

REMEMBERED = 1 << 16  # frames; 128 features each make 40 MB


class FeatureSpace(spaces.Box):
    """Feature vectors of one particular encoder: float32, (num_features,).

    Spaces of different encoders differ, so SB3 refuses to run a policy on the features of an encoder that it was not
    trained on, and so does `fuse`. The mark travels in the model's zip.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(-np.inf, np.inf, (encoder.num_features,), np.float32)
        self.encoder_hash = fingerprint(encoder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpace) and super().__eq__(other) and self.encoder_hash == other.encoder_hash

    def __repr__(self) -> str:
        return f"FeatureSpace({self.shape[0]}, encoder {self.encoder_hash[:12]})"


def fingerprint(encoder: Encoder) -> str:
    """SHA-256 over what decides the features: architecture, input specification and weights."""
    config = {key: encoder.config[key] for key in ("architecture", "arguments", "input")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


class EncodedVecEnv(VecEnvWrapper):
    """Gives SB3 the features of a frozen encoder instead of frames; train ``"MlpPolicy"`` on it.

    A frozen encoder inside the policy runs 1 + n_epochs times per frame. Here it runs once, and not again for a frame
    that it has seen before (nine in ten on a grid world). Terminal observations are encoded too. `fuse` puts encoder
    and trained policy together again.

    Args:
        venv: gives frames as ``encoder.input`` describes them.
        encoder: copied; training it later does not change the features.
        device: where to encode.

    Attributes:
        encoder: the frozen copy.
        frames: the current observations as pixels, (num_envs, C, H, W), for rendering and for fused policies.

    Raises:
        RlpreError: if the observation space is not the one the encoder reads, or the device is not there.
    """

    def __init__(self, venv: VecEnv, encoder: Encoder, device: torch.device | str = "auto") -> None:
        encoder.input.check(venv.observation_space)
        super().__init__(venv, observation_space=FeatureSpace(encoder))
        self.device = resolve_device(device)
        self.encoder = copy.deepcopy(encoder).to(self.device).eval()
        freeze(self.encoder)
        self.frames: np.ndarray = np.empty((0, *encoder.input.shape), encoder.input.dtype)
        self._seen: dict[bytes, np.ndarray] = {}

    def reset(self) -> np.ndarray:
        """Features of the first observations: (num_envs, num_features) float32."""
        self.frames = cast(np.ndarray, self.venv.reset())
        return self._encode(self.frames)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3, with features in the observations and in each ``infos[i]["terminal_observation"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.frames = cast(np.ndarray, observations)
        ended = [info for info in infos if info.get("terminal_observation") is not None]
        features = self._encode([*self.frames, *(info["terminal_observation"] for info in ended)])
        for info, terminal in zip(ended, features[self.num_envs :], strict=True):
            info["terminal_observation"] = terminal
        return features[: self.num_envs], rewards, dones, infos

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
