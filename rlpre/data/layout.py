"""Finding the images in an observation, and the axis that holds their channels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlpre.errors import RlpreError, lookup

Frames = npt.NDArray[np.uint8]
LAYOUTS = ("CHW", "HWC", "HW")


class Images(NamedTuple):
    """The images of an observation space.

    Attributes:
        key: of the image in a Dict observation; None if the observation is the image.
        layout: "CHW", "HWC" or "HW" (gray, without an axis of channels).
        shape: (C, H, W) of the stored frames.
    """

    key: str | None
    layout: str
    shape: tuple[int, ...]

    @property
    def space(self) -> spaces.Box:
        """The stored frames, ``Box(0, 255, (C, H, W), uint8)``."""
        return spaces.Box(0, 255, self.shape, np.uint8)

    def pick(self, observations: Any) -> Frames:
        """Frames (N, C, H, W) of a batch of observations, or (C, H, W) of one."""
        return channels_first(np.asarray(observations if self.key is None else observations[self.key]), self.layout)


def find_images(
    space: spaces.Space[Any] | None, where: str, key: str | None = None, layout: str | None = None
) -> Images:
    """Finds the images in an observation space.

    Args:
        space: a Box of uint8 images, or a Dict with one.
        where: where the observations come from, for messages.
        key: of the image in a Dict with several.
        layout: as in `layout_of`.

    Raises:
        RlpreError: if there is no such image, or more than one and no key.
    """
    if isinstance(space, spaces.Dict):
        images = {name: part for name, part in space.spaces.items() if _is_image(part)}
        if key is None and len(images) == 1:
            (key,) = images
        if key is None:
            listed = ", ".join(images) or f"none among {', '.join(space.spaces)}"
            raise RlpreError(f"the observations of {where} need one image and have {listed}: name it with image=...")
        space = lookup("image", key, images)
    elif key is not None:
        raise RlpreError(f"the observations of {where} are not a Dict, so there is no image {key!r}: leave it out")
    if not _is_image(space):
        raise RlpreError(f"the observations of {where} are {space}: frames are uint8 images (C, H, W) or (H, W, C)")
    layout = layout_of(space.shape, where, layout)
    return Images(key, layout, frame_shape(space.shape, layout))


def _is_image(space: spaces.Space[Any] | None) -> TypeGuard[spaces.Box]:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def layout_of(shape: Sequence[int], where: str, layout: str | None = None) -> str:
    """The layout of images of this shape: the channels are the axis that is shorter than the two others.

    Args:
        shape: of one image, two or three axes.
        where: where the images come from, for messages.
        layout: given by the user; decides if the shape is ambiguous.

    Raises:
        RlpreError: if the shape is ambiguous and no layout is given, or the given one has another number of axes.
    """
    if layout is not None:
        lookup("layout", layout, {name: name for name in LAYOUTS if len(name) == len(shape)})
        return layout
    if len(shape) == 2:
        return "HW"
    first, last = shape[0] < min(shape[1:]), shape[-1] < min(shape[:-1])
    if first == last:
        raise RlpreError(
            f"images of {where} have shape {tuple(shape)}, in which the channels are ambiguous: give layout='CHW' or "
            "layout='HWC'"
        )
    return "CHW" if first else "HWC"


def channels_first(images: Frames, layout: str) -> Frames:
    """(..., C, H, W) of images of a layout; a view."""
    if layout == "HWC":
        return np.moveaxis(images, -1, -3)
    return images[..., None, :, :] if layout == "HW" else images


def from_channels_first(frames: Frames, layout: str) -> Frames:
    """Undoes `channels_first`; a view."""
    if layout == "HWC":
        return np.moveaxis(frames, -3, -1)
    return frames[..., 0, :, :] if layout == "HW" else frames


def frame_shape(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """(C, H, W) of images of this shape and layout."""
    return channels_first(np.empty((0, *shape), np.uint8), layout).shape[1:]
