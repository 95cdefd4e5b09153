"""Where the images are in an observation, and which of their axes holds the channels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlpre.errors import RlpreError, lookup

Frames = npt.NDArray[np.uint8]
LAYOUTS = ("CHW", "HWC", "HW")


class Images(NamedTuple):
    """The images of an observation space.

    Attributes:
        key: their place in a Dict observation; None if the observation is the image.
        layout: "CHW", "HWC" or "HW" (gray, without an axis of channels).
        shape: (C, H, W) of the frames that a store keeps.
    """

    key: str | None
    layout: str
    shape: tuple[int, ...]

    @property
    def space(self) -> spaces.Box:
        """The frames, ``Box(0, 255, (C, H, W), uint8)``."""
        return spaces.Box(0, 255, self.shape, np.uint8)

    def pick(self, observed: Any) -> Frames:
        """Frames (N, C, H, W) of a batch of observations."""
        return channels_first(np.asarray(observed if self.key is None else observed[self.key]), self.layout)

    def one(self, observation: Any) -> Frames:
        """The frame (C, H, W) of a single observation."""
        image = np.asarray(observation if self.key is None else observation[self.key])
        return cast(Frames, channels_first(image[None], self.layout)[0])


def find_images(
    space: spaces.Space[Any] | None, where: str, key: str | None = None, layout: str | None = None
) -> Images:
    """Finds the images in an observation space.

    Args:
        space: a Box of uint8 images, or a Dict with one such key.
        where: whose observations they are, for messages.
        key: the key of a Dict with several.
        layout: as in `layout_of`.

    Raises:
        RlpreError: if there is no such image, or more than one and no key.
    """
    if isinstance(space, spaces.Dict):
        known = {name: part for name, part in space.spaces.items() if _is_image(part)}
        if key is None and len(known) == 1:
            (key,) = known
        if key is None:
            listed = ", ".join(known) or f"none among {', '.join(space.spaces)}"
            raise RlpreError(f"the observations of {where} need one image and have {listed}: name it with image=...")
        space = lookup("image", key, known)
    elif key is not None:
        raise RlpreError(f"the observations of {where} are not a Dict, so there is no image {key!r}: leave it out")
    if not _is_image(space):
        raise RlpreError(f"the observations of {where} are {space}: frames are uint8 images (C, H, W) or (H, W, C)")
    layout = layout_of(space.shape, where, layout)
    return Images(key, layout, channels_first(np.empty((0, *space.shape), np.uint8), layout).shape[1:])


def _is_image(space: spaces.Space[Any] | None) -> TypeGuard[spaces.Box]:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def layout_of(shape: Sequence[int], where: str, layout: str | None = None) -> str:
    """The layout of images of such a shape: the channels are the axis shorter than both sides.

    Args:
        shape: of one image, two or three axes.
        where: whose images they are, for messages.
        layout: what the user says; decides where the shape does not.

    Raises:
        RlpreError: if the shape does not tell the channels and nobody says, or what is said cannot be.
    """
    if layout is not None:
        lookup("layout", layout, {name: name for name in LAYOUTS if len(name) == len(shape)})
        return layout
    if len(shape) == 2:
        return "HW"
    first, last = shape[0] < min(shape[1:]), shape[-1] < min(shape[:-1])
    if first == last:
        raise RlpreError(
            f"images of {where} have shape {tuple(shape)}, which does not tell the channels: say layout='CHW' or 'HWC'"
        )
    return "CHW" if first else "HWC"


def channels_first(images: Frames, layout: str) -> Frames:
    """(N, C, H, W) of a batch of images of a layout; a view."""
    return {"CHW": images, "HWC": np.moveaxis(images, -1, 1), "HW": images[:, None]}[layout]


def lay_out(frames: Frames, layout: str) -> Frames:
    """Undoes `channels_first`; a view."""
    return {"CHW": frames, "HWC": np.moveaxis(frames, 1, -1), "HW": frames[:, 0]}[layout]
