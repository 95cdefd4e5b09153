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
        key: of the image in a Dict observation, "outer/inner" in a nested one; None if the observation is the image.
        layout: "CHW", "HWC" or "HW" (gray, without an axis of channels).
        shape: (C, H, W) of the stored frames.
        scale: of images of floats: multiplied by it and rounded, they are uint8; None for uint8 images.
    """

    key: str | None
    layout: str
    shape: tuple[int, ...]
    scale: float | None = None

    @property
    def space(self) -> spaces.Box:
        """The stored frames, ``Box(0, 255, (C, H, W), uint8)``."""
        return spaces.Box(0, 255, self.shape, np.uint8)

    def pick(self, observations: Any) -> Frames:
        """Frames (N, C, H, W) of a batch of observations, or (C, H, W) of one."""
        images = np.asarray(observations if self.key is None else part(observations, self.key))
        if self.scale is not None:
            images = (images * self.scale).round()
            if not (images.min() >= 0 and images.max() <= 255):
                raise RlpreError(f"images of floats must lie in 0..{255 / self.scale:g}: rescale them")
            images = images.astype(np.uint8)
        return channels_first(images, self.layout)


def find_images(
    space: spaces.Space[Any] | None,
    where: str,
    key: str | None = None,
    layout: str | None = None,
    floats: bool = False,
) -> Images:
    """Finds the images in an observation space.

    Args:
        space: a Box of images, or a Dict with one, nested at any depth.
        where: where the observations come from, for messages.
        key: of the image in a Dict with several.
        layout: as in `layout_of`.
        floats: whether images may be floats in 0..1 or 0..255, besides uint8.

    Raises:
        RlpreError: if there is no such image, or more than one and no key.
    """
    if key is not None and not isinstance(space, spaces.Dict):
        raise RlpreError(f"the observations of {where} are not a Dict, so there is no image {key!r}: leave it out")
    boxes = parts(space) if isinstance(space, spaces.Dict) else {"": space}
    images = {name: box for name, box in boxes.items() if _is_image(box, floats)}
    if not images:
        raise RlpreError(f"the observations of {where} are {space}: frames are uint8 images (C, H, W) or (H, W, C)")
    if key is None:
        key, *others = [name for name, box in images.items() if box.dtype == np.uint8] or list(images)
        if others:
            raise RlpreError(
                f"the observations of {where} hold several images, {', '.join([key, *others])}: name one with image=..."
            )
    box = lookup("image", key, images)
    layout = layout_of(box.shape, where, layout)
    scale = None if box.dtype == np.uint8 else 255 / float(box.high.max())
    shape = channels_first(np.empty(box.shape, np.uint8), layout).shape
    return Images(key or None, layout, shape, scale)


def parts(space: spaces.Dict, prefix: str = "") -> dict[str, spaces.Space[Any]]:
    """The spaces in a Dict, those in nested ones by names such as "outer/inner"."""
    spaces_by_name: dict[str, spaces.Space[Any]] = {}
    for name, inner in space.spaces.items():
        spaces_by_name |= parts(inner, f"{prefix}{name}/") if isinstance(inner, spaces.Dict) else {prefix + name: inner}
    return spaces_by_name


def part(observations: Any, key: str) -> Any:
    """The part of Dict observations that `parts` gives this name."""
    for name in [key] if key in observations else key.split("/"):
        observations = observations[name]
    return observations


def _is_image(space: spaces.Space[Any] | None, floats: bool) -> TypeGuard[spaces.Box]:
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    high = float(space.high.flat[0])
    known_range = not space.low.any() and (space.high == high).all() and high in (1, 255)
    return space.dtype == np.uint8 or (floats and bool(known_range))


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
