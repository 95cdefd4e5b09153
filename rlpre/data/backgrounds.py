"""Pictures behind grid worlds: a natural distraction, stored as nine bytes a frame and drawn when it is needed."""

from functools import cached_property
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from rlpre.data.tiles import TileAtlas
from rlpre.errors import RlpreError

Bytes = npt.NDArray[np.uint8]

# What the row of bytes below the grid begins with. The rest of the row is 0.
BACKGROUND = np.dtype([("number", ">u2"), ("y", ">u2"), ("x", ">u2"), ("weight", ">u2"), ("variant", "u1")])
FULL = 256  # the weight at which the picture covers the cells
VARIANTS = list(product(range(4), permutations(range(3))))  # quarter turns to the left, and the order of colours
_TURNS, _ORDERS = np.array([turns for turns, _ in VARIANTS]), np.array([order for _, order in VARIANTS])
_CHUNK = 16  # frames blended at a time: they stay in the second-level cache


class DistractingAtlas(TileAtlas):
    """The tiles of a grid world, and pictures that are blended over its frames.

    Codes have one row of bytes more than the grid, (R + 1, C, 3). It holds the background, see ``BACKGROUND``: the
    number of the picture, which is turned and recoloured as ``VARIANTS[variant]`` says; the corner (y, x) of the window
    that fills the frame; and its weight in 1/256. A pixel is (tile * (256 - weight) + picture * weight) / 256.

    Args:
        tiles: see `TileAtlas`.
        index: see `TileAtlas`.
        light: see `TileAtlas`.
        pictures: (K, 3, S, S) uint8, larger than the frames.
    """

    arrays = (*TileAtlas.arrays, "pictures")
    extra_rows = 1

    def __init__(self, tiles: np.ndarray, index: np.ndarray, light: np.ndarray, pictures: np.ndarray) -> None:
        super().__init__(tiles, index, light)
        self.pictures = np.ascontiguousarray(pictures, dtype=np.uint8)
        turned = [np.rot90(self.pictures, turns, (2, 3)) for turns in range(4)]
        self._channels = np.stack(turned, axis=1).reshape(-1, *self.pictures.shape[2:])  # (K * 4 * 3, S, S)
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {}

    @cached_property
    def plain(self) -> TileAtlas:
        """The tiles alone, for codes of the grid (R, C, 3)."""
        return TileAtlas(self.tiles, self.index, self.light)

    def decode(self, codes: Bytes, palette: str = "day") -> Bytes:
        """Turns codes (..., R + 1, C, 3) uint8 into frames (..., 3, R * T, C * T) uint8, contiguous.

        Raises:
            RlpreError: if a code names no tile, a row names no background, or the palette is unknown.
        """
        frames = super().decode(codes[..., :-1, :, :], palette)
        self.blend(frames.reshape(-1, *frames.shape[-3:]), codes[..., -1, :, :].reshape(-1, 3 * codes.shape[-2]))
        return frames

    def blend(self, frames: Bytes, rows: Bytes) -> None:
        """Draws the backgrounds of ``rows`` (N, C * 3) uint8 over frames (N, 3, H, W) uint8, in place.

        Raises:
            RlpreError: if a row names no background.
        """
        background = np.ascontiguousarray(rows[:, : BACKGROUND.itemsize]).view(BACKGROUND)[:, 0]
        most = (len(self.pictures) - 1, *self.slack(frames.shape[2:]), FULL, len(VARIANTS) - 1)
        names = BACKGROUND.names or ()
        if any((background[name] > highest).any() for name, highest in zip(names, most, strict=True)):
            raise RlpreError("codes name no background: they are damaged or belong to another atlas")
        number, y, x, variant = (background[name].astype(np.intp)[:, None] for name in ("number", "y", "x", "variant"))
        channels = (number * 4 + _TURNS[variant]) * 3 + _ORDERS[variant[:, 0]]
        weight = background["weight"].astype(np.uint16)[:, None, None, None]
        windows = sliding_window_view(self._channels, frames.shape[2:], axis=(1, 2))
        buffers = np.empty((2, min(_CHUNK, len(frames)), *frames.shape[1:]), np.uint16)
        for start in range(0, len(frames), _CHUNK):
            part = slice(start, start + _CHUNK)
            frame = frames[part]
            mixed, picture = buffers[:, : len(frame)]
            np.multiply(frame, FULL - weight[part], out=mixed)
            np.multiply(windows[channels[part], y[part], x[part]], weight[part], out=picture)
            mixed += picture
            mixed >>= 8
            frame[...] = mixed

    def slack(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The largest corner (y, x) of a window of this size (H, W)."""
        return tuple(self.pictures.shape[-1] - side for side in size)

    def replaced(self, codes: Tensor) -> Tensor:
        """The same cells before another background of the same weight: codes (N, R + 1, C, 3) uint8.

        It is the next variant of the next picture.
        """
        changed = codes.clone()
        row = changed.flatten(2)[:, -1]
        number = (row[:, 0].long() * 256 + row[:, 1] + 1) % len(self.pictures)
        row[:, 0], row[:, 1] = number // 256, number % 256
        row[:, 8] = (row[:, 8] + 1) % len(VARIANTS)
        return changed

    def _gather(self, codes: Tensor, night: bool) -> Tensor:
        frames = super()._gather(codes[..., :-1, :, :], night)
        height, width = frames.shape[-2:]
        if codes.device not in self._copies:
            tables = (self._channels.reshape(-1), _TURNS, _ORDERS)
            self._copies[codes.device] = tuple(torch.tensor(table, device=codes.device) for table in tables)
        pixels, turns, orders = self._copies[codes.device]
        row = codes[..., -1, :, :].reshape(-1, 3 * codes.shape[-2])[:, : BACKGROUND.itemsize].long()
        variant = row[:, 8]
        number, y, x, weight = (row[:, 0:8:2] * 256 + row[:, 1:8:2])[:, :, None, None, None].unbind(1)
        channel = (number * 4 + turns[variant].view_as(number)) * 3 + orders[variant][:, :, None, None]
        i, j = (torch.arange(side, device=codes.device) for side in (height, width))
        side = self.pictures.shape[-1]
        window = pixels[(channel * side + y + i[:, None]) * side + x + j]
        mixed = frames.view(-1, 3, height, width).int() * (FULL - weight) + window.int() * weight
        return (mixed >> 8).to(torch.uint8).view_as(frames)
