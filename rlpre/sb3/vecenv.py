"""Frozen encoders in front of the policy: each frame is encoded once, and SB3's buffers hold features."""

import copy
import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder, as_encoder
from rlpre.encoders.encoder import freeze
from rlpre.errors import RlpreError, at_least
from rlpre.sb3.spaces import NO_ACTION, EncoderLike, FeatureSpace, check_actions, find_image, window_space, with_image
from rlpre.utils import resolve_device

MEMORY_FRAMES = 1 << 16  # with 128 features each about 40 MB
Either = TypeVar("Either", Encoder, SequenceEncoder)


class FrameMemory:
    """Computes features of frames, and keeps them for frames that come again (nine in ten on a grid world).

    Args:
        encoder: frozen, in evaluation mode.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._device = encoder, encoder.device
        self._features: dict[bytes, np.ndarray] = {}

    def encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the features (n, num_features) of n frames (C, H, W)."""
        if len(self._features) >= MEMORY_FRAMES:
            self._features.clear()
        frames = [np.ascontiguousarray(frame) for frame in frames]
        keys = [hashlib.sha256(frame.data).digest() for frame in frames]
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._features}
        if new:
            self._features.update(zip(new, self._compute(np.stack(list(new.values()))), strict=True))
        return np.stack([self._features[key] for key in keys])

    @torch.inference_mode()
    def _compute(self, frames: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(frames)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return cast(np.ndarray, self._encoder(batch).float().cpu().numpy())


class _History:
    """The last ``depth`` steps of each environment, oldest first; before an episode's first step, ``blank``."""

    def __init__(self, num_envs: int, depth: int, **blank: Any) -> None:
        self._blank = blank
        nothing = {name: np.stack([part] * num_envs) for name, part in blank.items()}
        self._steps = deque([nothing] * depth, depth)
        self._ages = np.zeros(num_envs, np.int64)

    def append(self, starts: np.ndarray | None = None, **step: np.ndarray) -> Self:
        """A new history with one more step, parts (num_envs, ...); episodes begin where ``starts`` is true."""
        longer = copy.copy(self)
        longer._steps = self._steps.copy()
        longer._steps.append(step)
        longer._ages = self._ages + 1 if starts is None else np.where(starts, 1, self._ages + 1)
        return longer

    def window(self, name: str) -> np.ndarray:
        """One part of the last steps, (num_envs, depth, ...)."""
        depth = len(self._steps)
        joined = np.stack([step[name] for step in self._steps], axis=1)
        joined[np.arange(depth) < depth - self._ages[:, None]] = self._blank[name]
        return joined


class _StackReader:
    """Makes observations of the last ``stack`` frames' features side by side; in a Dict, in place of the image.

    All readers have ``space`` and these methods; arrays are (num_envs, ...), and ``actions`` those taken before.
    """

    def __init__(self, venv: VecEnv, encoder: Encoder, memory: FrameMemory, stack: int, image_key: str | None) -> None:
        part = find_image(venv.observation_space, encoder.input, key=image_key)
        self._key, self._channels_last = part.key, part.channels_last
        features = FeatureSpace(encoder, (stack * encoder.num_features,))
        self.space = with_image(venv.observation_space, self._key, features)
        black = np.zeros(encoder.input.shape, encoder.input.dtype)
        self._history = _History(venv.num_envs, stack, frames=black, features=memory.encode([black])[0])
        self._observations: Any = np.empty(0)

    def image(self, observation: Any) -> np.ndarray:
        """What the encoder reads of one observation, or of a batch: (..., C, H, W)."""
        image = observation if self._key is None else observation[self._key]
        return np.moveaxis(image, -1, -3) if self._channels_last else image

    def observe(self, observations: Any, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """The policy's observations after a step; episodes begin where ``starts`` is true."""
        self._observations = observations
        self._history = self._history.append(starts, frames=self.image(observations), features=features)
        return self._replace_image(observations, _side_by_side(self._history.window("features")))

    def terminal(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        """The policy's terminal observations for those in ``last``, by environment; ``observe`` follows."""
        joined = _side_by_side(self._history.append(features=features).window("features"))
        return [self._replace_image(observation, joined[env]) for env, observation in last.items()]

    def frames(self) -> VecEnvObs:
        """The current observations with pixels in place of features."""
        return self._replace_image(self._observations, _side_by_side(self._history.window("frames")))

    def _replace_image(self, observation: Any, image: np.ndarray) -> VecEnvObs:
        return image if self._key is None else {**observation, self._key: image}


def _side_by_side(window: np.ndarray) -> np.ndarray:
    """(num_envs, stack, size, ...) -> (num_envs, stack * size, ...)."""
    return window.reshape(len(window), -1, *window.shape[3:])


class _WindowReader:
    """Makes windows of the last frames' features, the actions before them, and the mission (see `window_space`)."""

    def __init__(self, venv: VecEnv, encoder: SequenceEncoder, window: int) -> None:
        if isinstance(venv.observation_space, spaces.Dict):
            encoder.frames.input.check(venv.observation_space)  # refuses it
        self._channels_last = find_image(venv.observation_space, encoder.frames.input).channels_last
        check_actions(venv.action_space, encoder)
        if not 1 <= window <= encoder.window:
            raise RlpreError(f"window is {window}, the encoder was built for {encoder.window}: give 1 to that many")
        self.space: spaces.Space[Any] = window_space(encoder, window)
        input, features = encoder.frames.input, np.zeros(encoder.frames.num_features, np.float32)
        blank = {"features": features, "actions": np.int64(NO_ACTION), "present": np.int8(0)}
        self._history = _History(venv.num_envs, window, frames=np.zeros(input.shape, input.dtype), **blank)
        self._base, self._vocabulary = venv.unwrapped, encoder.vocabulary
        self._missions = np.zeros((venv.num_envs, self._vocabulary.length if self._vocabulary else 0), np.int64)
        self._present = np.ones(venv.num_envs, np.int8)

    def image(self, observation: Any) -> np.ndarray:
        return np.moveaxis(observation, -1, -3) if self._channels_last else observation

    def observe(self, observations: Any, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        self._append(observations, features, np.where(starts, NO_ACTION, actions), starts)
        return self._windows(self._history, "features")

    def terminal(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        after = self._history.append(features=features, actions=actions, present=self._present)
        windows = self._windows(after, "features")
        return [{name: part[env] for name, part in windows.items()} for env in last]

    def frames(self) -> VecEnvObs:
        return self._windows(self._history, "frames")

    def _append(self, frames: Any, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> None:
        step = {"features": features, "actions": actions, "present": self._present}
        self._history = self._history.append(starts, frames=self.image(frames), **step)
        if self._vocabulary and starts.any():
            self._missions = self._missions.copy()  # earlier observations hold the old array
            for env in np.flatnonzero(starts).tolist():
                self._missions[env] = self._vocabulary.encode([self._mission(env)])[0]

    def _mission(self, env: int) -> str:
        mission = self._base.reset_infos[env].get("mission")
        if not isinstance(mission, str):
            raise RlpreError(
                f"environment {env} began an episode without a mission, which the encoder reads: put it into the info "
                "of its reset, or build an encoder with vocabulary=None"
            )
        return mission

    def _windows(self, history: _History, images: str) -> dict[str, np.ndarray]:
        windows = {name: history.window(name) for name in (images, "actions", "present")}
        return {**windows, "mission": self._missions} if self._vocabulary else windows


class _StepReader(_WindowReader):
    """Makes one feature vector per step with a causal `SequenceEncoder`, from the state kept since the last step."""

    def __init__(self, venv: VecEnv, encoder: SequenceEncoder) -> None:
        super().__init__(venv, encoder, encoder.window)
        self.space = FeatureSpace(encoder)
        self._encoder, self._state = encoder, encoder.begin(venv.num_envs)

    def observe(self, observations: Any, features: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        actions = np.where(starts, NO_ACTION, actions)
        self._append(observations, features, actions, starts)
        current, self._state = self._step(features, actions, starts)
        return current

    def terminal(self, last: dict[int, Any], features: np.ndarray, actions: np.ndarray) -> list[Any]:
        current, _ = self._step(features, actions, np.zeros(len(actions), bool))
        return [current[env] for env in last]

    @torch.inference_mode()
    def _step(self, *arguments: np.ndarray) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        features, actions, starts = (torch.from_numpy(part).to(self._encoder.device) for part in arguments)
        missions = torch.from_numpy(self._missions).to(self._encoder.device) if self._vocabulary else None
        current, state = self._encoder.step(features, actions, missions, self._state, starts)
        return current.float().cpu().numpy(), state


class FeaturesVecEnv(VecEnvWrapper):
    """Encodes each frame once; a reader makes observations of the features."""

    encoder: AnyEncoder

    def __init__(self, venv: VecEnv, memory: FrameMemory, reader: _StackReader | _WindowReader) -> None:
        super().__init__(venv, observation_space=reader.space)
        self._memory, self._reader = memory, reader
        self._actions = np.zeros(self.num_envs, np.int64)
        self._normalizer = unwrap_vec_normalize(venv)

    @property
    def frames(self) -> VecEnvObs:
        """The current observations with pixels, as a fused policy reads them."""
        return self._reader.frames()

    def reset(self) -> VecEnvObs:
        """As in SB3, with features in the observations."""
        observations = self.venv.reset()
        features = self._memory.encode(self._reader.image(observations))
        return cast(VecEnvObs, self._observe(observations, features, np.ones(self.num_envs, bool)))

    def step_async(self, actions: np.ndarray) -> None:
        """As in SB3."""
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3, with features in the observations and in each ``infos[i]["terminal_observation"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        last = {i: info["terminal_observation"] for i, info in enumerate(infos) if "terminal_observation" in info}
        image, count = self._reader.image, self.num_envs
        encoded = self._memory.encode([*image(observations), *map(image, last.values())])
        if last:
            features = np.zeros((count, encoded.shape[1]), np.float32)
            features[list(last)] = encoded[count:]
            for i, terminal in zip(last, self._reader.terminal(last, features, self._actions), strict=True):
                infos[i]["terminal_observation"] = terminal
        return self._observe(observations, encoded[:count], dones), rewards, dones, infos

    def _observe(self, observations: VecEnvObs, features: np.ndarray, starts: np.ndarray) -> Any:
        observed: Any = self._reader.observe(observations, features, self._actions, starts)
        if self._normalizer:  # an off-policy algorithm stores what it calls original, wherever it is in the stack
            original = {}
            if isinstance(observed, dict) and self._normalizer.norm_obs:
                before = cast(dict[str, np.ndarray], self._normalizer.old_obs)
                original = {key: before[key] for key in self._normalizer.norm_obs_keys or [] if key in observed}
            self._normalizer.old_obs = {**observed, **original} if isinstance(observed, dict) else observed
        return observed


class EncodedVecEnv(FeaturesVecEnv):
    """Gives SB3 the features of a frozen encoder instead of frames; train ``"MlpPolicy"`` on it.

    Inside the policy a frozen encoder runs 1 + n_epochs times per frame. Here it runs once, and not again for a frame
    that it has already seen. Terminal observations are encoded too. `fuse` puts encoder and trained policy together.

    In a Dict, the image is replaced by its features and the other keys stay; train ``"MultiInputPolicy"`` on it.

    A `SequenceEncoder` is run one step at a time from the state it kept. It also reads the actions, and the missions
    as `HistoryVecEnv` does. A GRU thus remembers the whole episode.

    Args:
        venv: gives frames as ``encoder.input`` describes them, channels first or last, or a Dict with such an image;
            for a `SequenceEncoder` frames as ``encoder.frames.input`` describes them.
        encoder: an encoder, its directory, or the result of `rlpre.pretrain`; copied, so training it later does not
            change the features.
        device: where to encode.
        stack: number of frames whose features an observation holds, oldest first. Before an episode's first frame
            they are black, as in SB3's ``VecFrameStack``. Other keys of a Dict are not stacked.
        image_key: of the image in a Dict, where several fit.

    Attributes:
        encoder: the frozen copy.
        frames: the current observations with pixels, as a fused policy reads them; the image has shape
            (num_envs, stack * C, H, W). For a `SequenceEncoder`, windows of pixels as of `HistoryVecEnv`.

    Raises:
        RlpreError: if the encoder cannot read the observations, or the device does not exist; for a `SequenceEncoder`
            also if the actions are not its own, or it is not causal.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: EncoderLike,
        device: torch.device | str = "auto",
        stack: int = 1,
        image_key: str | None = None,
    ) -> None:
        _check_vec_env(venv)
        encoder = as_encoder(encoder)
        self.stack = stack
        at_least(self, stack=1)
        reader: _StackReader | _WindowReader
        if isinstance(encoder, SequenceEncoder):
            if stack > 1 or image_key is not None:
                raise RlpreError("a SequenceEncoder reads single frames and remembers: leave out stack and image_key")
            self.encoder = sequence = _frozen(encoder, device)
            memory = FrameMemory(sequence.frames)
            reader = _StepReader(venv, sequence)
        else:
            self.encoder = single = _frozen(encoder, device)
            memory = FrameMemory(single)
            reader = _StackReader(venv, single, memory, stack, image_key)
        super().__init__(venv, memory, reader)


class HistoryVecEnv(FeaturesVecEnv):
    """Gives SB3 windows of past steps for a `SequenceEncoder` in the policy; train ``"MultiInputPolicy"`` on it.

    The encoder of single frames is frozen and runs here, once per frame. The layers that mix the steps are in the
    policy, where they can train: ``policy_kwargs(encoder, "finetuned")``. Windows are Dicts, see
    `rlpre.sb3.spaces.window_space`; they never reach beyond the episode's start. Terminal observations are windows
    too.

    Missions are read at each reset from ``info["mission"]``, and hold for the episode.

    Args:
        venv: gives frames as ``encoder.frames.input`` describes them, channels first or last, and takes
            ``encoder.actions`` discrete actions.
        encoder: an encoder, its directory, or the result of `rlpre.pretrain`; copied.
        window: steps in an observation, at most ``encoder.window``, the default. The features of a transformer depend
            on no more steps; a GRU loses what lies before the window.
        device: where to encode.

    Attributes:
        encoder: the frozen copy.
        frames: the current windows with pixels: "frames" (num_envs, window, C, H, W) in place of "features".

    Raises:
        RlpreError: if the encoder cannot read the frames, actions or missions, the window is too long, or the device
            does not exist.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: EncoderLike,
        window: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        encoder = as_encoder(encoder)
        if not isinstance(encoder, SequenceEncoder):
            raise RlpreError(
                f"HistoryVecEnv is for a SequenceEncoder, this is {type(encoder).__name__}: use EncodedVecEnv, or put "
                "it into a SequenceEncoder"
            )
        _check_vec_env(venv)
        reader = _WindowReader(venv, encoder, encoder.window if window is None else window)
        self.encoder = sequence = _frozen(encoder, device)
        super().__init__(venv, FrameMemory(sequence.frames), reader)


def _check_vec_env(venv: object) -> None:
    if not isinstance(venv, VecEnv):
        raise RlpreError(
            f"this is {type(venv).__name__}, not a VecEnv of Stable-Baselines3: wrap it, DummyVecEnv([lambda: env])"
        )
    normalizer = unwrap_vec_normalize(venv)
    if normalizer and normalizer.norm_obs:
        space, keys = normalizer.observation_space, normalizer.norm_obs_keys or []
        if not isinstance(space, spaces.Dict) or any(len(space[key].shape or ()) == 3 for key in keys):
            raise RlpreError(
                "VecNormalize changes the frames before the encoder reads them: give it norm_obs=False, or "
                "norm_obs_keys without the image"
            )


def _frozen(encoder: Either, device: torch.device | str) -> Either:
    """A copy that never trains, on ``device``."""
    encoder = copy.deepcopy(encoder).eval()
    freeze(encoder)
    return encoder.to(resolve_device(device))
