"""Features in place of frames: spaces, and environments that encode each frame once, so SB3's buffers stay small."""

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlpre.data.adapters import as_vec_env
from rlpre.data.windows import NO_ACTION
from rlpre.encoders import AnyEncoder, Encoder, InputSpec, SequenceEncoder, Vocabulary, as_encoder
from rlpre.encoders.encoder import freeze
from rlpre.errors import RlpreError, at_least, lookup, whole
from rlpre.pretrain import PretrainResult
from rlpre.sb3.optim import calling_algorithm
from rlpre.utils import resolve_device

MEMORY_FRAMES = 1 << 16  # with 128 features each about 40 MB
Device = torch.device | str
EncoderLike = AnyEncoder | str | PathLike[str] | PretrainResult  # what `rlpre.encoders.as_encoder` takes


# Spaces of features.


class _TaggedBox(spaces.Box):
    """A Box that equals only those with the same tag. SB3 compares spaces, and saves them in the model's zip."""

    tag: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and super().__eq__(other) and self.tag == other.tag

    def __repr__(self) -> str:
        return f"{type(self).__name__}({' x '.join(map(str, self.shape))}, {' '.join(self.tag)})"


@dataclass(frozen=True)
class Normalization:
    """What a ``VecNormalize`` does to observations; it goes on updating ``running``."""

    running: Mapping[str | None, RunningMeanStd]  # by key of a Dict
    epsilon: float
    clip: float


class FeatureSpace(_TaggedBox):
    """Feature vectors of one particular encoder, float32; those of another encoder are refused by SB3 and `fuse`.

    Attributes:
        normalizations: in a model's own copy, what stood between features and policy when it last learned, the
            first applied first; None if it has not learned. They are in the model's zip, those of its environment not.
    """

    normalizations: list[Normalization] | None = None

    def __init__(self, encoder: AnyEncoder, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(-np.inf, np.inf, (encoder.num_features,) if shape is None else shape, np.float32)
        self.tag = ("encoder", encoder.fingerprint()[:16])


class MissionSpace(_TaggedBox):
    """Missions encoded by one particular vocabulary, (length,) int64."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(0, len(vocabulary.words), (vocabulary.length,), np.int64)
        self.tag = tuple(vocabulary.words)


def normalizations(env: VecEnv | None) -> list[Normalization]:
    """Of each ``VecNormalize`` that changes what an environment of this module gives, the first applied first."""
    if not isinstance(env, VecEnvWrapper) or isinstance(env, FeaturesVecEnv):
        return []
    found = normalizations(env.venv)
    if isinstance(env, VecNormalize) and env.norm_obs:
        running: Mapping[Any, Any] = env.obs_rms if isinstance(env.obs_rms, dict) else {None: env.obs_rms}
        found.append(Normalization(running, env.epsilon, env.clip_obs))
    return found


def learned_normalizations(space: spaces.Space[Any]) -> list[Normalization] | None:
    """Those that a model's space of observations remembers; None if it has not learned from features."""
    remembered = (part.normalizations for part in _features(space).values())
    return next((found for found in remembered if found is not None), None)


def remember_normalizations(model: BaseAlgorithm) -> None:
    """Writes those of a model's environment into the space of observations of the model, as a copy, and its policy."""
    found = normalizations(model.get_env())
    for key, part in _features(model.observation_space).items():
        if part.normalizations == found:
            continue
        own = copy.copy(part)
        own.normalizations = found
        model.observation_space = model.policy.observation_space = with_image(model.observation_space, key, own)


def _features(space: spaces.Space[Any]) -> dict[str | None, FeatureSpace]:
    parts: Mapping[Any, spaces.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    return {key: part for key, part in parts.items() if isinstance(part, FeatureSpace)}


def window_space(encoder: SequenceEncoder, window: int, pixels: bool = False) -> spaces.Dict:
    """The space of windows, oldest step first, padded on the left where an episode has had fewer steps.

    - "features": (window, num_features) float32, the frames' features; or, with ``pixels``, "frames":
      (window, C, H, W), the frames.
    - "actions": (window,) int64, the action before each frame, -1 at an episode's first frame and in padding.
    - "present": (window,) int8, 0 in padding.
    - "mission": (words,) int64; only if the encoder has a vocabulary.
    """
    input = encoder.frames.input
    parts: dict[str, spaces.Space[Any]] = {
        "actions": spaces.Box(NO_ACTION, encoder.actions - 1, (window,), np.int64),
        "present": spaces.MultiBinary(window),
    }
    if pixels:
        parts["frames"] = spaces.Box(input.low, input.high, (window, *input.shape), np.dtype(input.dtype).type)
    else:
        parts["features"] = FeatureSpace(encoder.frames, (window, encoder.frames.num_features))
    if encoder.vocabulary:
        parts["mission"] = MissionSpace(encoder.vocabulary)
    return spaces.Dict(parts)


def window_length(space: spaces.Space[Any]) -> int | None:
    """The number of steps in a window; None if ``space`` is not one of windows."""
    actions = space.spaces.get("actions") if isinstance(space, spaces.Dict) else None
    return actions.shape[0] if isinstance(actions, spaces.Box) and len(actions.shape) == 1 else None


def check_windows(space: spaces.Space[Any], encoder: SequenceEncoder) -> None:
    """Refuses observations that are not windows for ``encoder``, by the name of the part that differs."""
    window = window_length(space)
    if not isinstance(space, spaces.Dict) or window is None:
        raise RlpreError(
            f"a SequenceEncoder reads windows of past steps, the environment gives {space}: wrap it in "
            "HistoryVecEnv(venv, encoder)"
        )
    for name, expected in window_space(encoder, window, pixels="frames" in space.spaces).items():
        given = space.spaces.get(name)
        if given != expected:
            raise RlpreError(
                f"the window's {name!r} is {given}, this encoder reads {expected}: give HistoryVecEnv and "
                "policy_kwargs the same encoder"
            )


def check_actions(space: spaces.Space[Any], encoder: SequenceEncoder) -> None:
    """Refuses actions that ``encoder`` does not read."""
    if not isinstance(space, spaces.Discrete):
        raise RlpreError(f"a SequenceEncoder reads discrete actions, the environment takes {space}: discretise them")
    if space != (own := spaces.Discrete(encoder.actions)):
        raise RlpreError(f"the environment takes {space}, the encoder was built for {own}: build one for its actions")


# Images that an encoder reads.


@dataclass(frozen=True)
class ImagePart:
    """The part of an observation that an encoder reads."""

    key: str | None  # in a Dict; None if the observation is the image itself
    channels_last: bool = False

    def pick(self, observation: Any) -> Any:
        """The image of one observation, or those of a batch: (..., C, H, W)."""
        image = observation if self.key is None else observation[self.key]
        return np.moveaxis(image, -1, -3) if self.channels_last else image

    def replace(self, observation: Any, image: Any) -> Any:
        """An observation with ``image`` in place of the image."""
        return image if self.key is None else {**observation, self.key: image}


def find_image(space: spaces.Space[Any], input: InputSpec, stack: int = 1, key: str | None = None) -> ImagePart:
    """Finds the image, or ``stack`` of them along the channels, that an encoder reads; in a Dict by name, or ``key``.

    Raises:
        RlpreError: if no image fits, or two do; or if another key holds bytes from 0 to 255, which SB3 would pass to
            the heads unscaled.
    """
    whole(stack=stack)
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise RlpreError(f"image_key={key!r} is for Dict observations, these are {type(space).__name__}: drop it")
        return ImagePart(None, _check_image(space, input, stack))
    if key is None:
        key = _only_image(space, stacked(input, stack))
    channels_last = _check_image(lookup("key", key, space.spaces), input, stack)
    for name, part in space.items():
        if name != key and isinstance(part, spaces.Box) and part.dtype == np.uint8 and part.high.max() == 255:
            raise RlpreError(f"the observation's {name!r} holds bytes, which SB3 would not scale: give float32 instead")
    return ImagePart(key, channels_last)


def stacked(input: InputSpec, stack: int) -> spaces.Box:
    """The space of ``stack`` frames along the channels, the oldest first, as SB3's ``VecFrameStack`` gives them."""
    low, high = (np.repeat(bound, stack, axis=0) for bound in (input.space.low, input.space.high))
    return spaces.Box(low, high, dtype=np.dtype(input.dtype).type)


def with_image(space: spaces.Space[Any], key: str | None, image: spaces.Box) -> spaces.Space[Any]:
    """Replaces the image that `find_image` found; the keys keep their order."""
    if key is None:
        return image
    assert isinstance(space, spaces.Dict)
    return spaces.Dict(OrderedDict((name, image if name == key else part) for name, part in space.items()))


def _check_image(space: spaces.Space[Any], input: InputSpec, stack: int) -> bool:
    """Returns whether channels are last."""
    channels, *size = input.shape
    channels_last = False
    shape = space.shape if isinstance(space, spaces.Box) else ()
    if len(shape) == 4 and shape[1:] in (input.shape, (*size, channels)):
        frames = shape[0]
        raise RlpreError(
            f"an observation holds {frames} frames along an axis of their own, as Gymnasium's FrameStackObservation "
            f"gives them: leave that wrapper out, and use EncodedVecEnv(venv, encoder, stack={frames}), or "
            f"policy_kwargs(encoder, stack={frames}) on VecFrameStack(venv, {frames})"
        )
    if isinstance(space, spaces.Box) and len(shape) == 3:
        channels_last = list(shape[1:]) != size and list(shape[:2]) == size
        low, high = (np.moveaxis(bound, -1, 0) if channels_last else bound for bound in (space.low, space.high))
        frames, rest = divmod(len(low), channels)
        if list(low.shape[1:]) == size and rest == 0:
            if frames != stack:
                raise RlpreError(
                    f"an observation holds {frames} frames of {channels} channels, not {stack}: pass stack={frames} "
                    "(EncodedVecEnv stacks by itself: leave out VecFrameStack)"
                )
            space = spaces.Box(low[:channels], high[:channels], dtype=space.dtype.type)
    input.check(space)
    return channels_last


def _only_image(space: spaces.Dict, image: spaces.Box) -> str:
    last = spaces.Box(np.moveaxis(image.low, 0, -1), np.moveaxis(image.high, 0, -1), dtype=image.dtype.type)
    images = [name for name, part in space.items() if isinstance(part, spaces.Box) and len(part.shape) == 3]
    fitting = [name for name in images if space[name] in (image, last)]
    if len(fitting) > 1:
        raise RlpreError(f"the encoder could read {fitting[0]!r} or {fitting[1]!r}: name one, image_key={fitting[0]!r}")
    if not fitting and len(images) != 1:
        wanted = f"the encoder's image, {image.dtype} {image.shape}"
        raise RlpreError(f"no key of the observation ({', '.join(space)}) is {wanted}: add it in a wrapper")
    return (fitting or images)[0]


# Environments.


@dataclass(frozen=True)
class _History:
    """The last steps of each environment, oldest first; before an episode's first step, ``blank``."""

    steps: tuple[dict[str, np.ndarray], ...]  # parts (num_envs, ...)
    ages: np.ndarray  # steps of the episode so far, (num_envs,)
    blank: dict[str, np.ndarray]

    def append(self, step: dict[str, np.ndarray], starts: Any = False) -> Self:
        """A history with one more step; episodes begin where ``starts`` is true."""
        return replace(self, steps=(*self.steps[1:], step), ages=np.where(starts, 1, self.ages + 1))

    def present(self) -> np.ndarray:
        """Which of the last steps are of the current episode, (num_envs, depth) int8."""
        depth = len(self.steps)
        return (np.arange(depth) >= depth - self.ages[:, None]).astype(np.int8)

    def window(self, name: str) -> np.ndarray:
        """One part of the last steps, (num_envs, depth, ...)."""
        joined = np.stack([step[name] for step in self.steps], axis=1)
        joined[self.present() == 0] = self.blank[name]
        return joined


class FeaturesVecEnv(VecEnvWrapper):
    """Encodes each frame once, and makes the policy's observations of the last ``depth`` steps of each episode."""

    encoder: AnyEncoder

    def __init__(
        self, venv: Any, encoder: AnyEncoder, device: Device, depth: int, image_key: str | None = None
    ) -> None:
        venv = as_vec_env(venv)
        self._normalizer = unwrap_vec_normalize(venv)
        _check_frames_unchanged(self._normalizer)
        self._device = resolve_device(device)  # a frozen copy would have to be searched for it, module by module
        self.encoder = copy.deepcopy(encoder).eval().to(self._device)
        freeze(self.encoder)
        self._frames = self.encoder.frames if isinstance(self.encoder, SequenceEncoder) else self.encoder
        self._known: dict[bytes, np.ndarray] = {}  # features by hash of the frame
        self._hashed: list[tuple[bytes, bytes]] = []  # the last frames, and their hashes
        self._image = find_image(venv.observation_space, self._frames.input, key=image_key)
        black = np.zeros(self._frames.input.shape, self._frames.input.dtype)
        self._vocabulary: Vocabulary | None = None
        space: spaces.Space[Any]
        if isinstance(self.encoder, SequenceEncoder):
            if self._image.key is not None:
                self._frames.input.check(venv.observation_space)  # refuses a Dict
            check_actions(venv.action_space, self.encoder)
            self._vocabulary = self.encoder.vocabulary
            space, blank = window_space(self.encoder, depth), np.zeros(self._frames.num_features, np.float32)
        else:
            features = FeatureSpace(self.encoder, (depth * self.encoder.num_features,))
            space, blank = with_image(venv.observation_space, self._image.key, features), self._encode([black])[0]
        super().__init__(venv, observation_space=space)
        nothing: dict[str, np.ndarray] = {"frames": black, "features": blank, "actions": np.array(NO_ACTION)}
        step = {name: np.stack([part] * self.num_envs) for name, part in nothing.items()}
        self._history = _History((step,) * depth, np.zeros(self.num_envs, np.int64), nothing)
        self._missions = np.zeros((self.num_envs, self._vocabulary.length if self._vocabulary else 0), np.int64)
        self._state: tuple[torch.Tensor, ...] | None = None  # of an encoder that runs one step at a time
        self._actions = np.zeros(self.num_envs, np.int64)
        self._observations: Any = None

    @property
    def frames(self) -> VecEnvObs:
        """The current observations with pixels, as a fused policy reads them."""
        return cast(VecEnvObs, self._image.replace(self._observations, self._view(self._history, "frames")))

    def reset(self) -> VecEnvObs:
        """As in SB3, with features in the observations."""
        if model := calling_algorithm():
            remember_normalizations(model)
        observations = self.venv.reset()
        features = self._encode(self._image.pick(observations))
        return self._observe(observations, features, np.ones(self.num_envs, bool))

    def step_async(self, actions: np.ndarray) -> None:
        """As in SB3."""
        if model := calling_algorithm():  # which may go on in a new environment without a reset
            remember_normalizations(model)
        self._actions = np.asarray(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3, with features in the observations and in each ``infos[i]["terminal_observation"]``."""
        observations, rewards, dones, infos = self.venv.step_wait()
        last = {i: info["terminal_observation"] for i, info in enumerate(infos) if "terminal_observation" in info}
        encoded = self._encode([*self._image.pick(observations), *map(self._image.pick, last.values())])
        if last:
            features = np.zeros((self.num_envs, encoded.shape[1]), np.float32)
            features[list(last)] = encoded[self.num_envs :]
            ended, _ = self._read(self._history.append({"features": features, "actions": self._actions}))
            for i, observation in last.items():
                one = {name: part[i] for name, part in ended.items()} if isinstance(ended, dict) else ended[i]
                infos[i]["terminal_observation"] = self._image.replace(observation, one)
        return self._observe(observations, encoded[: self.num_envs], dones), rewards, dones, infos

    def _observe(self, observations: Any, features: np.ndarray, starts: np.ndarray) -> VecEnvObs:
        """Appends a step to the history, and returns the policy's observations; ``starts`` marks new episodes."""
        step = {"frames": self._image.pick(observations), "features": features}
        if isinstance(self.encoder, SequenceEncoder):
            step["actions"] = np.where(starts, NO_ACTION, self._actions)
        if self._vocabulary and starts.any():
            self._missions = self._missions.copy()  # earlier observations hold the old array
            for env in np.flatnonzero(starts).tolist():
                self._missions[env] = self._vocabulary.encode([self._mission(env)])[0]
        self._observations, self._history = observations, self._history.append(step, starts)
        read, self._state = self._read(self._history)
        observed: Any = self._image.replace(observations, read)
        if self._normalizer:  # an off-policy algorithm stores what it calls original, wherever it is in the stack
            original = {}
            if isinstance(observed, dict) and self._normalizer.norm_obs:
                before = cast(dict[str, np.ndarray], self._normalizer.old_obs)
                original = {key: before[key] for key in self._normalizer.norm_obs_keys or [] if key in observed}
            self._normalizer.old_obs = {**observed, **original} if isinstance(observed, dict) else observed
        return cast(VecEnvObs, observed)

    def _mission(self, env: int) -> str:
        mission = self.unwrapped.reset_infos[env].get("mission")
        if not isinstance(mission, str):
            raise RlpreError(
                f"environment {env} began an episode without a mission in the info of its reset, which the encoder "
                "reads: put it there, or build an encoder with vocabulary=None"
            )
        return mission

    @torch.inference_mode()
    def _read(self, history: _History) -> tuple[Any, tuple[torch.Tensor, ...] | None]:
        """What the policy reads of the last steps, and the encoder's next state."""
        if self._state is None:
            return self._view(history, "features"), None
        assert isinstance(self.encoder, SequenceEncoder)
        step = history.steps[-1]
        features, actions, missions, starts = (
            torch.from_numpy(part).to(self._device)
            for part in (step["features"], step["actions"], self._missions, history.ages == 1)
        )
        mission = missions if self._vocabulary else None
        current, state = self.encoder.step(features, actions, mission, self._state, starts)
        return current.float().cpu().numpy(), state

    def _view(self, history: _History, images: str) -> Any:
        """The last steps' features or frames, side by side; for a `SequenceEncoder` in windows."""
        window = history.window(images)
        if not isinstance(self.encoder, SequenceEncoder):
            return window.reshape(self.num_envs, -1, *window.shape[3:])
        windows = {images: window, "actions": history.window("actions"), "present": history.present()}
        return {**windows, "mission": self._missions} if self._vocabulary else windows

    def _encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Features (n, num_features) of n frames (C, H, W); nine in ten of a grid world's have been seen before."""
        if len(self._known) >= MEMORY_FRAMES:
            self._known.clear()
        frames = [np.ascontiguousarray(frame) for frame in frames]
        contents = [frame.tobytes() for frame in frames]
        before = [*self._hashed, *[(b"", b"")] * len(frames)]  # many frames equal the last one of their environment
        keys = [
            key if content == last else hashlib.sha256(content).digest()
            for content, (last, key) in zip(contents, before, strict=False)
        ]
        self._hashed = list(zip(contents, keys, strict=True))
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._known}
        if new:
            self._known.update(zip(new, self._compute(np.stack(list(new.values()))), strict=True))
        return np.stack([self._known[key] for key in keys])

    @torch.inference_mode()
    def _compute(self, frames: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(frames)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return cast(np.ndarray, self._frames(batch).float().cpu().numpy())


class EncodedVecEnv(FeaturesVecEnv):
    """Gives SB3 the features of a frozen encoder instead of frames; train ``"MlpPolicy"`` on it.

    Inside the policy a frozen encoder runs 1 + n_epochs times per frame. Here it runs once, and not again for a frame
    that it has already seen. Terminal observations are encoded too. `fuse` puts encoder and trained policy together.
    In a Dict, features replace the image and the other keys stay; train ``"MultiInputPolicy"`` on it.

    A `SequenceEncoder` is run one step at a time from the state it kept. It also reads the actions, and the missions
    as `HistoryVecEnv` does. A GRU thus remembers the whole episode.

    Args:
        venv: an environment that `rlpre.data.adapters.as_vec_env` takes. It gives frames as ``encoder.input`` (of a
            `SequenceEncoder`, ``encoder.frames.input``) describes them, channels first or last, or in a Dict.
        encoder: an encoder, its directory, or the result of `rlpre.pretrain`; copied.
        device: where to encode.
        stack: number of frames whose features an observation holds, oldest first. Before an episode's first frame
            they are black, as in SB3's ``VecFrameStack``. Other keys of a Dict are not stacked.
        image_key: of the image in a Dict, where several fit.

    Attributes:
        encoder: the frozen copy.
        frames: the current observations with pixels, as a fused policy reads them; the image has shape
            (num_envs, stack * C, H, W). For a `SequenceEncoder`, windows of pixels as of `HistoryVecEnv`.

    Raises:
        RlpreError: if the encoder cannot read observations or actions, is not causal, or the device does not exist.
    """

    def __init__(
        self, venv: Any, encoder: EncoderLike, device: Device = "auto", stack: int = 1, image_key: str | None = None
    ) -> None:
        encoder, self.stack = as_encoder(encoder), stack
        at_least(self, stack=1)
        if isinstance(encoder, Encoder):
            super().__init__(venv, encoder, device, stack, image_key)
            return
        if stack > 1 or image_key is not None:
            raise RlpreError("a SequenceEncoder reads single frames and remembers: leave out stack and image_key")
        super().__init__(venv, encoder, device, encoder.window)
        self.observation_space = FeatureSpace(encoder)
        assert isinstance(self.encoder, SequenceEncoder)
        self._state = self.encoder.begin(self.num_envs)


class HistoryVecEnv(FeaturesVecEnv):
    """Gives SB3 windows of past steps for a `SequenceEncoder` in the policy; train ``"MultiInputPolicy"`` on it.

    The encoder of single frames is frozen and runs here, once per frame. The layers that mix the steps are in the
    policy, where they can train: ``policy_kwargs(encoder, "finetuned")``. Windows are Dicts, see `window_space`; they
    never reach beyond the episode's start. Missions are read at each reset from ``info["mission"]``.

    Args:
        venv: as of `EncodedVecEnv`, with ``encoder.actions`` discrete actions.
        encoder: as of `EncodedVecEnv`.
        window: steps in an observation, at most ``encoder.window``, the default. The features of a transformer depend
            on no more steps; a GRU loses what lies before the window.
        device: where to encode.

    Attributes:
        encoder: the frozen copy.
        frames: the current windows with pixels: "frames" (num_envs, window, C, H, W) in place of "features".

    Raises:
        RlpreError: if the encoder cannot read frames, actions or missions, the window is too long, or the device does
            not exist.
    """

    def __init__(self, venv: Any, encoder: EncoderLike, window: int | None = None, device: Device = "auto") -> None:
        encoder = as_encoder(encoder)
        if not isinstance(encoder, SequenceEncoder):
            raise RlpreError("HistoryVecEnv is for a SequenceEncoder, this is Encoder: use EncodedVecEnv")
        window = encoder.window if window is None else window
        if not 1 <= window <= encoder.window:
            raise RlpreError(f"window is {window}, the encoder was built for {encoder.window}: give 1 to that many")
        super().__init__(venv, encoder, device, window)


def _check_frames_unchanged(normalizer: VecNormalize | None) -> None:
    if normalizer and normalizer.norm_obs:
        space, keys = normalizer.observation_space, normalizer.norm_obs_keys or []
        if not isinstance(space, spaces.Dict) or any(len(space[key].shape or ()) == 3 for key in keys):
            raise RlpreError(
                "VecNormalize changes the frames before the encoder reads them: give it norm_obs=False, or "
                "norm_obs_keys without the image"
            )
