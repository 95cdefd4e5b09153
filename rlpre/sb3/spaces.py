"""Observation spaces: the image an encoder reads, features in its place, and windows of past steps."""

from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from rlpre.encoders import AnyEncoder, InputSpec, SequenceEncoder, Vocabulary
from rlpre.encoders.encoder import BaseEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.pretrain import PretrainResult
from rlpre.sb3.caller import calling_algorithm

NO_ACTION = -1  # before an episode's first frame
EncoderLike = AnyEncoder | str | PathLike[str] | PretrainResult  # what `rlpre.encoders.as_encoder` takes


class _TaggedBox(spaces.Box):
    """A Box that equals only those with the same tag. SB3 compares spaces, and saves them in the model's zip."""

    tag: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and super().__eq__(other) and self.tag == other.tag

    def __repr__(self) -> str:
        return f"{type(self).__name__}({' x '.join(map(str, self.shape))}, {' '.join(self.tag)})"


class FeatureSpace(_TaggedBox):
    """Feature vectors of one particular encoder, float32; those of another encoder are refused by SB3 and `fuse`.

    Args:
        encoder: computes the features.
        shape: of an observation; default (num_features,).

    Attributes:
        normalized: in a saved model, whether ``VecNormalize`` changed the features; its statistics are not in the zip.
    """

    normalized = False

    def __init__(self, encoder: BaseEncoder, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(-np.inf, np.inf, (encoder.num_features,) if shape is None else shape, np.float32)
        self.tag = ("encoder", encoder.fingerprint()[:16])

    def __getstate__(self) -> dict[str, Any]:
        model = calling_algorithm()
        return {**self.__dict__, "normalized": self.normalized or (model is not None and normalizes(model.get_env()))}


def normalizes(env: VecEnv | None) -> bool:
    """Whether a ``VecNormalize`` around ``env`` changes observations."""
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.norm_obs:
            return True
        env = env.venv
    return False


class MissionSpace(_TaggedBox):
    """Missions encoded by one particular vocabulary, (length,) int64."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(0, len(vocabulary.words), (vocabulary.length,), np.int64)
        self.tag = tuple(vocabulary.words)


# Images.


@dataclass(frozen=True)
class ImagePart:
    """The part of an observation that an encoder reads."""

    key: str | None  # in a Dict; None if the observation is the image itself
    channels_last: bool


def find_image(space: spaces.Space[Any], input: InputSpec, stack: int = 1, key: str | None = None) -> ImagePart:
    """Finds the image that an encoder reads; its channels may be first or last.

    Args:
        space: of the observations.
        input: what the encoder reads.
        stack: number of frames stacked along the channels.
        key: of the image, for a Dict with several images that fit.

    Raises:
        RlpreError: if no image fits, or two do; or if another key holds bytes from 0 to 255, which SB3 would pass to
            the heads unscaled.
    """
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise RlpreError(
                f"image_key={key!r} is for Dict observations, these are {type(space).__name__}: leave it out"
            )
        return ImagePart(None, _check_image(space, input, stack))
    if key is None:
        key = _only_image(space, stacked(input, stack))
    channels_last = _check_image(lookup("key", key, space.spaces), input, stack)
    for name, part in space.items():
        if name != key and isinstance(part, spaces.Box) and part.dtype == np.uint8 and part.high.max() == 255:
            raise RlpreError(
                f"the observation's {name!r} holds bytes from 0 to 255, which a policy's heads cannot read: "
                "leave it out, or give float32 or MultiDiscrete in a wrapper"
            )
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
    if isinstance(space, spaces.Box) and len(space.shape) == 4 and space.shape[1:] in (input.shape, (*size, channels)):
        frames = space.shape[0]
        raise RlpreError(
            f"an observation holds {frames} frames along an axis of their own, as Gymnasium's FrameStackObservation "
            f"gives them: leave that wrapper out, and use EncodedVecEnv(venv, encoder, stack={frames}), or "
            f"policy_kwargs(encoder, stack={frames}) on VecFrameStack(venv, {frames})"
        )
    if isinstance(space, spaces.Box) and len(space.shape) == 3:
        channels_last = list(space.shape[1:]) != size and list(space.shape[:2]) == size
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
        raise RlpreError(
            f"no key of the observation ({', '.join(space)}) is the encoder's image, {image.dtype} {image.shape}: "
            "add it in a wrapper"
        )
    return (fitting or images)[0]


# Windows.


def window_space(encoder: SequenceEncoder, window: int, pixels: bool = False) -> spaces.Dict:
    """The space of windows, oldest step first, padded on the left where an episode has had fewer steps.

    - "features": (window, num_features) float32, the frames' features; or, with ``pixels``, "frames":
      (window, C, H, W), the frames.
    - "actions": (window,) int64, the action before each frame, -1 at an episode's first frame and in padding.
    - "present": (window,) int8, 0 in padding.
    - "mission": (words,) int64; only if the encoder has a vocabulary.
    """
    input, vocabulary = encoder.frames.input, encoder.vocabulary
    parts: dict[str, spaces.Space[Any]] = {
        "actions": spaces.Box(NO_ACTION, encoder.actions - 1, (window,), np.int64),
        "present": spaces.MultiBinary(window),
    }
    if pixels:
        parts["frames"] = spaces.Box(input.low, input.high, (window, *input.shape), np.dtype(input.dtype).type)
    else:
        parts["features"] = FeatureSpace(encoder.frames, (window, encoder.frames.num_features))
    if vocabulary:
        parts["mission"] = MissionSpace(vocabulary)
    return spaces.Dict(parts)


def window_length(space: spaces.Space[Any]) -> int | None:
    """The number of steps in a window; None if ``space`` is not one of windows."""
    actions = space.spaces.get("actions") if isinstance(space, spaces.Dict) else None
    return actions.shape[0] if isinstance(actions, spaces.Box) and len(actions.shape) == 1 else None


def check_windows(space: spaces.Space[Any], encoder: SequenceEncoder) -> None:
    """Refuses observations that are not windows for ``encoder``.

    Raises:
        RlpreError: naming the part that differs.
    """
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
    """Refuses actions that ``encoder`` does not read.

    Raises:
        RlpreError: if they are continuous, or another number of actions.
    """
    if not isinstance(space, spaces.Discrete):
        raise RlpreError(f"a SequenceEncoder reads discrete actions, the environment takes {space}: discretise them")
    if space != spaces.Discrete(encoder.actions):
        raise RlpreError(
            f"the environment takes {space}, the encoder was built for Discrete({encoder.actions}): build one with "
            "its number of actions"
        )
