"""What of an observation the encoder reads: all of it, or one image of a Dict."""

from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

from rlpre.encoders import InputSpec
from rlpre.errors import RlpreError, lookup


def find_image(space: spaces.Space[Any], input: InputSpec, stack: int = 1, key: str | None = None) -> str | None:
    """The key of the image that an encoder reads, None if the observation is that image.

    Args:
        space: of the observations.
        input: what the encoder reads.
        stack: frames on top of each other.
        key: the image's, for a Dict with several that fit.

    Raises:
        RlpreError: if there is no such image, or two; or if another key holds bytes, which SB3 would hand to the heads
            as they are, from 0 to 255.
    """
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise RlpreError(
                f"image_key={key!r} is for Dict observations, these are {type(space).__name__}: leave it out"
            )
        _check(space, input, stack)
        return None
    found = _only_image(space, stacked(input, stack)) if key is None else key
    _check(lookup("key", found, space.spaces), input, stack)
    for name, part in space.items():
        if name != found and isinstance(part, spaces.Box) and part.dtype == np.uint8 and part.high.max() == 255:
            raise RlpreError(
                f"the observation's {name!r} holds bytes from 0 to 255, which a policy's heads cannot read: "
                "leave it out, or give float32 or MultiDiscrete in a wrapper"
            )
    return found


def stacked(input: InputSpec, stack: int) -> spaces.Box:
    """The space of ``stack`` frames on top of each other, channels of the oldest first, as SB3's ``VecFrameStack``."""
    low, high = (np.repeat(bound, stack, axis=0) for bound in (input.space.low, input.space.high))
    return spaces.Box(low, high, dtype=np.dtype(input.dtype).type)


def with_image(space: spaces.Space[Any], key: str | None, image: spaces.Box) -> spaces.Space[Any]:
    """``space`` with another image in the place that `find_image` found; keys stay in their order."""
    if key is None:
        return image
    assert isinstance(space, spaces.Dict)
    return spaces.Dict(OrderedDict((name, image if name == key else part) for name, part in space.items()))


def _check(space: spaces.Space[Any], input: InputSpec, stack: int) -> None:
    channels, *size = input.shape
    if isinstance(space, spaces.Box) and list(space.shape[1:]) == size and space.shape[0] % channels == 0:
        frames = space.shape[0] // channels
        if frames != stack:
            raise RlpreError(
                f"an observation holds {frames} frames of {channels} channels, not {stack}: pass stack={frames} "
                "(EncodedVecEnv stacks by itself: leave out VecFrameStack)"
            )
        space = spaces.Box(space.low[:channels], space.high[:channels], dtype=space.dtype.type)
    input.check(space)


def _only_image(space: spaces.Dict, image: spaces.Box) -> str:
    pictures = [name for name, part in space.items() if isinstance(part, spaces.Box) and len(part.shape) == 3]
    fitting = [name for name in pictures if space[name] == image]
    if len(fitting) > 1:
        raise RlpreError(f"the encoder could read {fitting[0]!r} or {fitting[1]!r}: name one, image_key={fitting[0]!r}")
    if not fitting and len(pictures) != 1:
        raise RlpreError(
            f"no key of the observation ({', '.join(space)}) is the encoder's image, {image.dtype} {image.shape}: "
            "add it in a wrapper"
        )
    return (fitting or pictures)[0]
