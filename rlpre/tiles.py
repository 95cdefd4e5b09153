"""Pixels of grid worlds as a look-up: a frame is stored as a few bytes a cell and decoded when it is needed."""

import functools
import zipfile
from pathlib import Path

import numpy as np
import torch

from rlpre.errors import RlpreError, lookup
from rlpre.files import atomic

HIGHLIGHT = 1 << 2
AGENT_SHIFT = 3
PALETTES = {"day": False, "night": True}  # name -> lit by the lamp alone

# Frames gathered at a time: their tiles stay in the second-level cache between the two copies of a decode.
_CHUNK = 16


class TileAtlas:
    """The picture of every tile a code can stand for.

    A code is three bytes a cell, (type, color, flags): integer ids of the world, and flags = state (bits 0-1) |
    highlighted << 2 | agent << 3, where agent is 0 (not here) or 1 + its direction.

    The palette "day" shows the tiles as they are. "night" shows the same cells under a lamp that the agent carries:
    a tile is dimmed by the distance between its cell and the agent's, so frames of both palettes pair exactly.

    Args:
        tiles: (K, 3, T, T) uint8, channel first.
        index: (types, colors, flags) integers: the tile of each code, -1 where no such code exists.
        light: (levels,) uint16 in 1/256: brightness at night by distance in cells, rounded to the nearest, the
            last level from there on. The first, on the agent's own cell, is full: 256.
    """

    def __init__(self, tiles: np.ndarray, index: np.ndarray, light: np.ndarray) -> None:
        self.tiles = np.ascontiguousarray(tiles, dtype=np.uint8)
        self.index = np.ascontiguousarray(index, dtype=np.intp)
        self.light = np.ascontiguousarray(light, dtype=np.uint16)
        self.tile_size = int(tiles.shape[-1])
        self._tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def decode(self, codes: np.ndarray, palette: str = "day") -> np.ndarray:
        """The frames that codes stand for.

        Args:
            codes: (..., R, C, 3) uint8.
            palette: "day" or "night".

        Returns:
            (..., 3, R * T, C * T) uint8, contiguous.

        Raises:
            RlpreError: if a code names no tile, or the palette is unknown.
        """
        *batch, rows, columns, _ = codes.shape
        ids = self._ids(codes.reshape(-1, rows, columns, 3))
        if lookup("palette", palette, PALETTES):
            agent = (codes.reshape(-1, rows * columns, 3)[..., 2] >> AGENT_SHIFT).argmax(1)
            levels = _levels(rows, columns, len(self.light))[agent]
            ids = ids + levels.reshape(ids.shape) * np.intp(len(self.tiles))
        atlas = self._runs
        frames = np.empty((len(ids), 3, rows, self.tile_size, columns, atlas.shape[-1]), atlas.dtype)
        cells = frames.transpose(0, 2, 4, 1, 3, 5)
        for start in range(0, len(ids), _CHUNK):
            cells[start : start + _CHUNK] = atlas.take(ids[start : start + _CHUNK], axis=0)
        return frames.view(np.uint8).reshape(*batch, 3, rows * self.tile_size, columns * self.tile_size)

    def decode_torch(self, codes: torch.Tensor, palette: str = "day") -> torch.Tensor:
        """Like :meth:`decode`, on the device of ``codes``; an accelerator trusts the codes to name tiles."""
        if codes.device.type == "cpu":
            return torch.from_numpy(self.decode(codes.numpy(), palette))
        return self._gather(codes, lookup("palette", palette, PALETTES))

    def save(self, path: Path) -> None:
        """Writes the atlas as one ``.npz`` file, atomically."""
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, tiles=self.tiles, index=self.index, light=self.light)

    @classmethod
    def load(cls, path: Path) -> "TileAtlas":
        """Reads what :meth:`save` wrote.

        Raises:
            RlpreError: if the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["tiles"], arrays["index"], arrays["light"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise RlpreError(f"{path} is not a tile atlas ({error}): restore it or collect the frames again") from error

    def dim(self, frame: np.ndarray, agent: int) -> np.ndarray:
        """A frame under the lamp, for pixels that no code stands for.

        Args:
            frame: (3, R * T, C * T) uint8.
            agent: cell of the agent, row-major.

        Returns:
            uint8 of the same shape.
        """
        rows, columns = frame.shape[1] // self.tile_size, frame.shape[2] // self.tile_size
        light = self.light[_levels(rows, columns, len(self.light))[agent]].reshape(rows, columns)
        return _dimmed(frame, light.repeat(self.tile_size, 0).repeat(self.tile_size, 1))

    def _ids(self, codes: np.ndarray) -> np.ndarray:
        """Tile numbers (N, R, C) of codes (N, R, C, 3)."""
        try:
            ids: np.ndarray = self.index[codes[..., 0], codes[..., 1], codes[..., 2]]
        except IndexError as error:
            raise RlpreError(f"codes name no tile ({error}): they are damaged or belong to another atlas") from error
        if ids.size and ids.min() < 0:
            bad = codes[ids < 0][0].tolist()
            raise RlpreError(f"the code {bad} (type, color, flags) names no tile: it belongs to another atlas")
        return ids

    @functools.cached_property
    def _runs(self) -> np.ndarray:
        """(levels * K, 3, T, words): the tiles at each brightness, each row of pixels in the widest words that fit."""
        lit = _dimmed(self.tiles, self.light[:, None, None, None, None])
        word = next(size for size in (8, 4, 2, 1) if self.tile_size % size == 0)
        return lit.reshape(-1, *self.tiles.shape[1:]).view(f"i{word}")

    def _gather(self, codes: torch.Tensor, night: bool) -> torch.Tensor:
        *batch, rows, columns, _ = codes.shape
        tiles, index = self._on(codes.device)
        kind, color, flags = codes.reshape(-1, rows, columns, 3).long().unbind(-1)
        ids = index[kind, color, flags]
        if night:
            agent = (flags.flatten(1) >> AGENT_SHIFT).argmax(1)
            levels = torch.from_numpy(_levels(rows, columns, len(self.light))).to(codes.device)
            ids = ids + levels[agent].view_as(ids).long() * len(self.tiles)
        frames = tiles[ids].permute(0, 3, 1, 4, 2, 5).contiguous().view(torch.uint8)
        return frames.reshape(*batch, 3, rows * self.tile_size, columns * self.tile_size)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._tensors:
            self._tensors[device] = (torch.tensor(self._runs, device=device), torch.tensor(self.index, device=device))
        return self._tensors[device]


@functools.lru_cache(maxsize=32)
def _levels(rows: int, columns: int, levels: int) -> np.ndarray:
    """Brightness level (agent's cell, cell) uint8 in a grid of this size."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    distance = np.hypot(y[:, None] - y, x[:, None] - x).round()
    level: np.ndarray = np.minimum(distance, levels - 1).astype(np.uint8)
    return level


def _dimmed(pixels: np.ndarray, light: np.ndarray) -> np.ndarray:
    dimmed: np.ndarray = (pixels.astype(np.uint16) * light >> 8).astype(np.uint8)
    return dimmed
