"""What an observation holds of the past: features side by side, a window of them, or what a sequence encoder keeps.

The wrappers encode frames; a reader makes observations of the features, the terminal ones too.
"""

from collections import deque
from typing import Any, Protocol, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs

from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.sb3.features import FeatureSpace, FrameMemory
from rlpre.sb3.observation import find_image, with_image
from rlpre.sb3.window import NO_ACTION, check_actions, window_space


class Reader(Protocol):
    """Makes observations of features."""

    space: spaces.Space[Any]

    def image(self, observation: Any) -> np.ndarray:
        """What the encoder reads of an observation, or of many."""

    def read(self, observations: VecEnvObs, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """Gives the new observations.

        Args:
            observations: as the environments give them.
            features: of their images, (num_envs, num_features).
            actions: before them, (num_envs, ...); without meaning where an episode starts.
            starts: where one does, (num_envs,) bool.
        """

    def ended(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        """Gives the terminal observations of the environments in ``last``, whose episodes just ended; ``read`` follows.

        Args:
            last: by environment, as it gives them.
            features: of their images, (len(last), num_features).
            actions: before them, of all environments.
        """

    def frames(self) -> VecEnvObs:
        """The current observations with pixels instead of features."""


class History:
    """The last ``depth`` moments of each environment, oldest first; blank where an episode has had fewer.

    Args:
        num_envs: number of environments.
        depth: number of moments.
        **blank: the parts of a moment, as they are where there is none.
    """

    def __init__(self, num_envs: int, depth: int, **blank: Any) -> None:
        self._blank = blank
        nothing = {name: np.stack([part] * num_envs) for name, part in blank.items()}
        self._moments = deque([nothing] * depth, depth)
        self._ages = np.zeros(num_envs, np.int64)

    def append(self, starts: np.ndarray, **moment: np.ndarray) -> None:
        """Takes one more moment, parts (num_envs, ...); an episode begins where ``starts`` (num_envs,) is true."""
        self._ages = np.where(starts, 1, self._ages + 1)
        self._moments.append(moment)

    def window(self, name: str, envs: slice = slice(None)) -> np.ndarray:
        """One part of the last moments: (num_envs, depth, ...)."""
        depth = len(self._moments)
        joined = np.stack([moment[name][envs] for moment in self._moments], axis=1)
        joined[np.arange(depth) < depth - self._ages[envs, None]] = self._blank[name]
        return joined

    def ending(self, name: str, env: int, last: Any) -> np.ndarray:
        """What one environment's window would be after ``last``: (depth, ...)."""
        earlier = self.window(name, slice(env, env + 1))[0, 1:]
        return np.concatenate([earlier, np.asarray(last, earlier.dtype)[None]])


class Stack:
    """Features of the last ``stack`` frames side by side; of a Dict, in the place of its image.

    Args:
        venv: gives frames, or a Dict with an image.
        encoder: of the frames.
        memory: of their features.
        stack: number of frames.
        image_key: the image of a Dict, where several fit.

    Raises:
        RlpreError: if the observation space is not one that the encoder reads.
    """

    def __init__(self, venv: VecEnv, encoder: Encoder, memory: FrameMemory, stack: int, image_key: str | None) -> None:
        self._key = find_image(venv.observation_space, encoder.input, key=image_key)
        features = FeatureSpace(encoder, (stack * encoder.num_features,))
        self.space = with_image(venv.observation_space, self._key, features)
        black = np.zeros(encoder.input.shape, encoder.input.dtype)
        self._history = History(venv.num_envs, stack, frames=black, features=memory.encode([black])[0])
        self._observations: VecEnvObs = np.empty(0)

    def image(self, observation: Any) -> np.ndarray:
        """The observation, or its image."""
        return cast(np.ndarray, observation if self._key is None else observation[self._key])

    def read(self, observations: VecEnvObs, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """Features (num_envs, stack * num_features), or Dicts that hold them."""
        self._observations = observations
        self._history.append(starts, frames=self.image(observations), features=features)
        return self._joined(observations, self._history.window("features"))

    def ended(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        """As ``read``, of one environment each."""
        return [
            self._joined(observation, self._history.ending("features", env, new)[None], single=True)
            for (env, observation), new in zip(last.items(), features, strict=True)
        ]

    def frames(self) -> VecEnvObs:
        """Frames on top of each other, (num_envs, stack * C, H, W), or Dicts that hold them."""
        return self._joined(self._observations, self._history.window("frames"))

    def _joined(self, observation: Any, window: np.ndarray, single: bool = False) -> VecEnvObs:
        """Window (n, stack, size, ...) as (n, stack * size, ...) in the image's place."""
        image = window.reshape(len(window), -1, *window.shape[3:])
        image = image[0] if single else image
        return image if self._key is None else {**observation, self._key: image}


class Windows:
    """The last frames' features, the actions before them, and the mission: what a `SequenceEncoder` reads.

    Args:
        venv: gives frames, takes discrete actions, and says missions in the info of its resets.
        encoder: of the sequences.
        window: number of frames.

    Raises:
        RlpreError: if frames or actions are not those that the encoder reads, or the window is longer than its own.
    """

    def __init__(self, venv: VecEnv, encoder: SequenceEncoder, window: int) -> None:
        encoder.frames.input.check(venv.observation_space)
        check_actions(venv.action_space, encoder)
        if not 1 <= window <= encoder.window:
            raise RlpreError(f"window is {window}, the encoder was built for {encoder.window}: give 1 to that many")
        self.space: spaces.Space[Any] = window_space(encoder, window)
        input, features = encoder.frames.input, np.zeros(encoder.frames.num_features, np.float32)
        blank = {"features": features, "actions": np.int64(NO_ACTION), "present": np.int8(0)}
        self._history = History(venv.num_envs, window, frames=np.zeros(input.shape, input.dtype), **blank)
        self._base, self._vocabulary = venv.unwrapped, encoder.vocabulary
        self.missions = np.zeros((venv.num_envs, encoder.vocabulary.length if encoder.vocabulary else 0), np.int64)

    def image(self, observation: Any) -> np.ndarray:
        """The observation."""
        return cast(np.ndarray, observation)

    def read(self, observations: VecEnvObs, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """Windows as `window_space` describes them.

        Raises:
            RlpreError: if an episode starts without a mission, or with one that the vocabulary lacks.
        """
        self._take(observations, features, actions, starts)
        return self._windows("features")

    def ended(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        """As ``read``, of one environment each."""
        return [self._ending(env, features=new, actions=actions[env]) for env, new in zip(last, features, strict=True)]

    def frames(self) -> VecEnvObs:
        """Windows of pixels."""
        return self._windows("frames")

    def _take(self, frames: Any, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Returns the actions, ``NO_ACTION`` where an episode starts."""
        actions = np.where(starts, NO_ACTION, actions)
        present = np.ones(len(starts), np.int8)
        self._history.append(starts, frames=frames, features=features, actions=actions, present=present)
        if self._vocabulary and starts.any():
            self.missions = self.missions.copy()  # the last observations hold the old ones
            for env in np.flatnonzero(starts).tolist():
                self.missions[env] = self._vocabulary.encode([self._mission(env)])[0]
        return actions

    def _mission(self, env: int) -> str:
        mission = self._base.reset_infos[env].get("mission")
        if not isinstance(mission, str):
            raise RlpreError(
                f"environment {env} began an episode without a mission, which the encoder reads: put it into the info "
                "of its reset, or build an encoder with vocabulary=None"
            )
        return mission

    def _windows(self, images: str) -> VecEnvObs:
        windows = {name: self._history.window(name) for name in (images, "actions", "present")}
        return {**windows, "mission": self.missions} if self._vocabulary else windows

    def _ending(self, env: int, **last: Any) -> dict[str, np.ndarray]:
        windows = {name: self._history.ending(name, env, part) for name, part in last.items()}
        windows["present"] = self._history.ending("present", env, 1)
        return {**windows, "mission": self.missions[env]} if self._vocabulary else windows


class Steps(Windows):
    """What a causal `SequenceEncoder` says of each step, computed from what it kept of the steps before.

    Args:
        venv: as for `Windows`.
        encoder: frozen, in evaluation mode.

    Raises:
        RlpreError: as `Windows`, and if the encoder is not causal.
    """

    def __init__(self, venv: VecEnv, encoder: SequenceEncoder) -> None:
        super().__init__(venv, encoder, encoder.window)
        self.space = FeatureSpace(encoder)
        self._encoder, self._device, self._state = encoder, encoder.device, encoder.begin(venv.num_envs)

    def read(self, observations: VecEnvObs, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """Features (num_envs, width)."""
        actions = self._take(observations, features, actions, starts)
        current, self._state = self._step(features, actions, starts)
        return current

    def ended(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        """As ``read``, of one environment each; the state stays."""
        if not last:
            return []
        every = np.zeros((len(actions), features.shape[1]), np.float32)
        every[list(last)] = features
        return list(self._step(every, actions, np.zeros(len(actions), bool))[0][list(last)])

    @torch.inference_mode()
    def _step(self, *arguments: np.ndarray) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        features, actions, starts = (torch.from_numpy(part).to(self._device) for part in arguments)
        missions = torch.from_numpy(self.missions).to(self._device) if self._vocabulary else None
        current, state = self._encoder.step(features, actions, missions, self._state, starts)
        return current.float().cpu().numpy(), state
