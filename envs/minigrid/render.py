"""What an agent sees of a MiniGrid grid: one symbol for each cell, and the tiles that render the symbols."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.rendering import downsample, highlight_img

from rlpre.data.tiles import AGENT_SHIFT, HIGHLIGHT, TileAtlas
from rlpre.errors import RlpreError

EMPTY = 1  # 0 is unseen

_DOORS = {
    (color, is_open, is_locked): Door(color, is_open, is_locked)
    for color in COLOR_TO_IDX
    for is_open, is_locked in ((True, False), (False, False), (False, True))
}
_THINGS = {(kind, color): kind(color) for kind in (Wall, Floor, Key, Ball, Box, Goal) for color in COLOR_TO_IDX}
_THINGS[Lava, "red"] = Lava()

# The object of each symbol; symbols 0 (unseen) and 1 (empty) have none.
OBJECTS: list[WorldObj | None] = [None, None, *_THINGS.values(), *_DOORS.values()]
# (symbols, 3) uint8: MiniGrid's own (type, color, state).
CODES = np.array([(0, 0, 0), (1, 0, 0), *(thing.encode() for thing in OBJECTS if thing)], dtype=np.uint8)
# bytes.translate table: 1 where a symbol hides what is behind it.
OPAQUE = bytes(thing is not None and not thing.see_behind() for thing in OBJECTS).ljust(256, b"\0")

_SYMBOLS = {key: symbol for symbol, key in enumerate([*_THINGS, *_DOORS], start=2)}


class UnknownObjectError(Exception):
    """The cells that were read hold an object without a symbol."""


def symbols_of(cells: Iterable[WorldObj | None]) -> bytes:
    """One symbol for each cell, by the exact class of its object, because a subclass may be drawn differently."""
    symbols = _SYMBOLS
    try:
        return bytes(
            [
                EMPTY
                if cell is None
                else symbols[cell.__class__, cell.color]
                if cell.__class__ is not Door
                else symbols[cell.color, cell.is_open, cell.is_locked]
                for cell in cells
            ]
        )
    except KeyError as error:
        raise UnknownObjectError(error.args[0]) from None


_BORDER = Wall()  # shown by MiniGrid outside the grid
_UP = bytes([HIGHLIGHT | (1 + 3) << AGENT_SHIFT])  # the agent in its own view looks up
_HIGHLIGHTED = bytes(255) + bytes([HIGHLIGHT])
_SEEN = b"\xff"  # a mask, so that hidden symbols become 0, unseen


class SymbolicFrame(NamedTuple):
    """A frame before it is rendered, row by row as on the screen."""

    symbols: bytes  # one for each cell, indices into CODES and OBJECTS
    flags: bytes  # one for each cell: highlight and agent, see rlpre.data.tiles
    stock: np.ndarray | None = None  # (3, H, W) uint8: the frame as MiniGrid draws it, if the atlas cannot
    background: bytes = b""  # the row of the picture behind the cells, see rlpre.data.backgrounds


def partial(env: MiniGridEnv) -> SymbolicFrame:
    """The square in front of the agent, rotated so that the agent looks up; cells behind walls are unseen."""
    symbols, seen, _ = _square(env)
    agent = agent_cell(partial, env)
    # The agent's cell shows what it carries, not what it stands on.
    symbols = symbols[:agent] + symbols_of((env.carrying,)) + symbols[agent + 1 :]
    flags = seen.translate(_HIGHLIGHTED)
    shown = int.from_bytes(symbols) & int.from_bytes(seen)
    return SymbolicFrame(shown.to_bytes(len(symbols)), flags[:agent] + _UP + flags[agent + 1 :])


def full(env: MiniGridEnv) -> SymbolicFrame:
    """The whole grid; the cells that the agent sees are highlighted."""
    symbols = symbols_of(env.grid.grid)
    flags = bytearray(len(symbols) + 1)  # the last one stands for all cells outside the grid
    if env.highlight:
        for cell in seen(env):
            flags[cell] = HIGHLIGHT
    flags[agent_cell(full, env)] |= (1 + env.agent_dir) << AGENT_SHIFT
    return SymbolicFrame(symbols, bytes(flags[:-1]))


def seen(env: MiniGridEnv) -> list[int]:
    """Cells of the grid that the agent sees, row-major; ``width * height`` stands for all cells outside the grid."""
    _, visible, cells = _square(env)
    return list(compress(cells, visible))


View = Callable[[MiniGridEnv], SymbolicFrame]
VIEWS: dict[str, View] = {"partial": partial, "full": full, "distract": partial}


def shape(view: View, env: MiniGridEnv) -> tuple[int, int]:
    """Rows and columns of a view."""
    return (env.height, env.width) if view is full else (env.agent_view_size, env.agent_view_size)


def agent_cell(view: View, env: MiniGridEnv) -> int:
    """The index of the agent's cell in a view, row-major."""
    if view is full:
        return env.agent_pos[1] * env.grid.width + env.agent_pos[0]
    return env.agent_view_size * (env.agent_view_size - 1) + env.agent_view_size // 2


def encode(frames: Sequence[SymbolicFrame], rows: int, columns: int) -> np.ndarray:
    """The tile codes (N, R, C, 3) uint8 of N frames."""
    symbols = b"".join([frame.symbols for frame in frames])
    codes = CODES.take(np.frombuffer(symbols, np.uint8), axis=0)
    codes[:, 2] |= np.frombuffer(b"".join([frame.flags for frame in frames]), np.uint8)
    return codes.reshape(-1, rows, columns, 3)


def one_hot(codes: np.ndarray) -> np.ndarray:
    """The type (11), color (6) and state (3) of each cell: (..., R, C, 20) float32 of codes (..., R, C, 3).

    Each is one-hot, but the agent's cell has two types, that of what is there and MiniGrid's "agent".
    """
    kinds, colors, flags = np.moveaxis(codes, -1, 0)
    ids = (kinds, OBJECT_TO_IDX), (colors, COLOR_TO_IDX), (flags & (HIGHLIGHT - 1), STATE_TO_IDX)
    parts = [np.eye(len(names), dtype=np.float32)[part] for part, names in ids]
    parts[0][..., OBJECT_TO_IDX["agent"]] = flags >> AGENT_SHIFT > 0
    return np.concatenate(parts, axis=-1)


def _square(env: MiniGridEnv) -> tuple[bytes, bytes, list[int]]:
    """For each cell in front of the agent, as on the screen: its symbol, 255 if visible, and its index in the grid."""
    grid = env.grid
    gather, cells = _window(env.agent_view_size, *env.agent_pos, env.agent_dir, grid.width, grid.height)
    symbols = symbols_of(gather([*grid.grid, _BORDER]))
    walls_hide = not env.see_through_walls
    visible = _light(symbols.translate(OPAQUE), env.agent_view_size) if walls_hide else _SEEN * len(symbols)
    return symbols, visible, cells


@functools.lru_cache(maxsize=1 << 16)
def _window(
    size: int, x: int, y: int, direction: int, width: int, height: int
) -> tuple[Callable[[Sequence], Sequence], list[int]]:
    """A getter of the cells in the agent's square, and their indices; ``width * height`` means outside the grid."""
    forward, right = DIR_TO_VEC[direction], DIR_TO_VEC[(direction + 1) % 4]
    ahead, aside = np.mgrid[size - 1 : -1 : -1, -(size // 2) : size // 2 + 1]
    column, row = (start + ahead * f + aside * r for start, f, r in zip((x, y), forward, right, strict=True))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cells = np.where(inside, row * width + column, width * height).ravel().tolist()
    return itemgetter(*cells), cells


@functools.lru_cache(maxsize=1 << 14)
def _light(opaque: bytes, size: int) -> bytes:
    """``Grid.process_vis``, row by row: light starts at the agent and spreads sideways and up."""
    rows, lit = [], _SEEN.center(size, b"\0")
    for start in range(size * (size - 1), -1, -size):
        row, lit = _spread(lit, opaque[start : start + size])
        rows.append(row)
    return b"".join(reversed(rows))


@functools.lru_cache(maxsize=1 << 16)
def _spread(lit: bytes, opaque: bytes) -> tuple[bytes, bytes]:
    """Spreads light in one row from cells lit by the row below: visible cells, and cells lit in the row above."""
    row, above = bytearray(lit), bytearray(len(lit))
    last = len(row) - 1
    for cells, step in ((range(last), 1), (range(last, 0, -1), -1)):
        for i in cells:
            if row[i] and not opaque[i]:
                row[i + step] = above[i + step] = above[i] = _SEEN[0]
    return bytes(row), bytes(above)


_SAMPLES = 3  # sub-pixels for each pixel and axis, as in Grid.render_tile
_NIGHT = (256, 256, 256, 154, 90, 38)  # brightness in 1/256 at 0, 1, 2, 3, 4, and 5 or more cells from the agent


class _TileRenderer(Grid):
    """MiniGrid's tile renderer with a cache of its own: tiles drawn here are larger than those of the stock cache."""

    tile_cache: dict = {}  # noqa: RUF012


@functools.cache
def atlas(tile_size: int) -> TileAtlas:
    """The tiles of every object, color and state, with and without the agent and the highlight.

    MiniGrid draws each layer once, and they are combined as in ``Grid.render_tile``: every pixel equals its rendering.

    Raises:
        RlpreError: if ``tile_size``, the pixels of a cell along each axis, is not in 1..256.
    """
    if not isinstance(tile_size, int) or not 1 <= tile_size <= 256:
        raise RlpreError(f"tile_size is {tile_size}: give 1 to 256 pixels a cell")
    empty, *agents = (_draw(None, tile_size, direction) for direction in (None, 0, 1, 2, 3))
    masks = [np.zeros(empty.shape[:2], bool), *((agent != empty).any(-1) for agent in agents)]
    tiles, index = [], np.full((CODES[:, 0].max() + 1, CODES[:, 1].max() + 1, len(masks) << AGENT_SHIFT), -1)
    for (kind, color, state), thing in zip(CODES, OBJECTS, strict=True):
        picture = _draw(thing, tile_size)
        for agent, mask in enumerate(masks):
            for highlight in (0, HIGHLIGHT):
                index[kind, color, state | highlight | agent << AGENT_SHIFT] = len(tiles)
                tiles.append(_tile(picture, mask, bool(highlight)))
    return TileAtlas(np.stack(tiles), index, np.array(_NIGHT))


def _draw(thing: object, tile_size: int, direction: int | None = None) -> np.ndarray:
    """One layer before down-sampling, (T * samples, T * samples, 3) uint8."""
    return _TileRenderer.render_tile(thing, direction, tile_size=tile_size * _SAMPLES, subdivs=1).astype(np.uint8)


def _tile(picture: np.ndarray, agent: np.ndarray, highlight: bool) -> np.ndarray:
    tile = picture.copy()
    tile[agent] = (255, 0, 0)
    if highlight:
        highlight_img(tile)
    return downsample(tile, _SAMPLES).astype(np.uint8).transpose(2, 0, 1)
