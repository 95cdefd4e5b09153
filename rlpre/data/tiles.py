"""Grid-world pixels as a table look-up: a frame is stored as three bytes per cell and decoded when it is needed."""

import functools
import zipfile
from pathlib import Path
from typing import Self

import numpy as np
import torch

from rlpre.errors import RlpreError, lookup
from rlpre.utils import atomic

HIGHLIGHT = 1 << 2
AGENT_SHIFT = 3
PALETTES = {"day": False, "night": True}  # name -> whether the agent's lamp is the only light
_BYTES = np.array([1 << 16, 1 << 8, 1], np.float32)  # of a code, read as one number
_CHUNK = 16  # frames decoded at a time: their tiles stay in the second-level cache between the two copies


class TileAtlas:
    """The pixels of every tile that a code can name.

    A code is three bytes per cell, (type, color, flags): integer ids of the world, and flags = state (bits 0-1) |
    highlighted << 2 | agent << 3, where agent is 0 (not in this cell) or 1 + its direction.

    The palette "day" shows the tiles as they are. "night" shows the same cells lit by a lamp that the agent carries:
    tiles get darker with the distance between their cell and the agent's.

    Args:
        tiles: (K, 3, T, T) uint8, channels first.
        index: (types, colors, flags) integers: the tile of each code, -1 for codes that do not exist.
        light: (levels,) uint16 in 1/256: brightness at night by distance in cells (rounded; the last level holds for
            all larger distances). The first, on the agent's own cell, is full: 256.
    """

    arrays: tuple[str, ...] = ("tiles", "index", "light")  # what `save` writes
    extra_rows = 0  # of codes, below those of the grid

    def __init__(self, tiles: np.ndarray, index: np.ndarray, light: np.ndarray) -> None:
        self.tiles = np.ascontiguousarray(tiles, dtype=np.uint8)
        self.index = np.ascontiguousarray(index, dtype=np.intp)
        self.light = np.ascontiguousarray(light, dtype=np.uint16)
        self.tile_size = int(tiles.shape[-1])
        self._tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def plain(self) -> "TileAtlas":
        """The tiles alone, without what a subclass draws over them: this atlas itself."""
        return self

    def decode(self, codes: np.ndarray, palette: str = "day") -> np.ndarray:
        """Turns codes (..., R, C, 3) uint8 into frames (..., 3, R * T, C * T) uint8, contiguous.

        Raises:
            RlpreError: if a code names no tile, or the palette is unknown.
        """
        *batch, rows, columns, _ = codes.shape
        agent = None
        if lookup("palette", palette, PALETTES):
            agent = (codes.reshape(-1, rows * columns, 3)[..., 2] >> AGENT_SHIFT).argmax(1)
        frames = self.draw(self.tile_ids(codes.reshape(-1, rows, columns, 3)), agent)
        return frames.reshape(*batch, *frames.shape[1:])

    def tile_ids(self, codes: np.ndarray) -> np.ndarray:
        """The number of the tile of each code: (...) of codes (..., 3) uint8.

        Raises:
            RlpreError: if a code names no tile.
        """
        # One look-up of the three bytes as one number; it and all parts of the sum are exact in single precision.
        numbers = codes.reshape(-1, 3).astype(np.float32) @ _BYTES
        ids: np.ndarray = self._by_number.take(numbers.astype(np.intp), mode="clip").reshape(codes.shape[:-1])
        if ids.size and ids.max() == len(self.tiles):
            bad = codes[ids == len(self.tiles)][0].tolist()
            raise RlpreError(f"the code {bad} (type, color, flags) names no tile: it belongs to another atlas")
        return ids

    def draw(self, ids: np.ndarray, agent: np.ndarray | None = None) -> np.ndarray:
        """Frames (N, 3, R * T, C * T) uint8, contiguous, of the tiles ``ids`` (N, R, C).

        At night ``agent`` (N,) or (1,) is the cell of the agent, row-major.
        """
        count, rows, columns = ids.shape
        if agent is not None:
            levels = _light_levels(rows, columns, len(self.light))[agent]
            ids = ids + levels.reshape(-1, rows, columns) * np.intp(len(self.tiles))
        tiles = self._lit_tiles
        frames = np.empty((count, 3, rows, self.tile_size, columns, tiles.shape[-1]), tiles.dtype)
        cells = frames.transpose(0, 2, 4, 1, 3, 5)
        for start in range(0, count, _CHUNK):
            cells[start : start + _CHUNK] = tiles.take(ids[start : start + _CHUNK], axis=0)
        return frames.view(np.uint8).reshape(count, 3, rows * self.tile_size, columns * self.tile_size)

    def decode_torch(self, codes: torch.Tensor, palette: str = "day") -> torch.Tensor:
        """Like `decode`, on the device of ``codes``; on an accelerator the codes are not checked."""
        if codes.device.type == "cpu":
            return torch.from_numpy(self.decode(codes.numpy(), palette))
        return self._gather(codes, lookup("palette", palette, PALETTES))

    def save(self, path: Path) -> None:
        """Writes one ``.npz`` file, atomically."""
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{name: getattr(self, name) for name in self.arrays})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the file that `save` wrote; an `RlpreError` if it is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.arrays})
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RlpreError(f"{path} is not a tile atlas ({error}): restore it or collect the frames again") from error

    def equals(self, other: "TileAtlas") -> bool:
        """Whether both decode every code alike."""
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.arrays)

    def dim(self, frame: np.ndarray, agent: int) -> np.ndarray:
        """Applies the palette "night" to a frame (3, R * T, C * T) uint8 that no code describes.

        ``agent`` is the cell of the agent, row-major.
        """
        rows, columns = frame.shape[1] // self.tile_size, frame.shape[2] // self.tile_size
        light = self.light[_light_levels(rows, columns, len(self.light))[agent]].reshape(rows, columns)
        return _dimmed(frame, light.repeat(self.tile_size, 0).repeat(self.tile_size, 1))

    @functools.cached_property
    def _by_number(self) -> np.ndarray:
        """The tile of each code, read as a number of three bytes; ``len(tiles)`` for codes that do not exist."""
        kinds, colors, flags = self.index.shape
        table = np.full((kinds + 1, 256, 256), len(self.tiles), np.min_scalar_type(len(self.tiles)))
        table[:kinds, :colors, :flags] = np.where(self.index < 0, len(self.tiles), self.index)
        return table.ravel()

    @functools.cached_property
    def _lit_tiles(self) -> np.ndarray:
        """(levels * K, 3, T, words): the tiles at each brightness, each row of pixels in the widest words that fit."""
        lit = _dimmed(self.tiles, self.light[:, None, None, None, None])
        word = next(size for size in (8, 4, 2, 1) if self.tile_size % size == 0)
        return lit.reshape(-1, *self.tiles.shape[1:]).view(f"i{word}")

    def _gather(self, codes: torch.Tensor, night: bool) -> torch.Tensor:
        if codes.device not in self._tensors:
            self._tensors[codes.device] = (
                torch.tensor(self._lit_tiles, device=codes.device),
                torch.tensor(self.index, device=codes.device),
            )
        tiles, index = self._tensors[codes.device]
        *batch, rows, columns, _ = codes.shape
        kind, color, flags = codes.reshape(-1, rows, columns, 3).long().unbind(-1)
        ids = index[kind, color, flags]
        if night:
            agent = (flags.flatten(1) >> AGENT_SHIFT).argmax(1)
            levels = torch.from_numpy(_light_levels(rows, columns, len(self.light))).to(codes.device)
            ids = ids + levels[agent].view_as(ids).long() * len(self.tiles)
        frames = tiles[ids].permute(0, 3, 1, 4, 2, 5).contiguous().view(torch.uint8)
        return frames.reshape(*batch, 3, rows * self.tile_size, columns * self.tile_size)


@functools.lru_cache(maxsize=32)
def _light_levels(rows: int, columns: int, levels: int) -> np.ndarray:
    """Brightness level by (agent's cell, cell), uint8, in a grid of this size."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    distance = np.hypot(y[:, None] - y, x[:, None] - x).round()
    level: np.ndarray = np.minimum(distance, levels - 1).astype(np.uint8)
    return level


def _dimmed(pixels: np.ndarray, light: np.ndarray) -> np.ndarray:
    dimmed: np.ndarray = (pixels.astype(np.uint16) * light >> 8).astype(np.uint8)
    return dimmed
