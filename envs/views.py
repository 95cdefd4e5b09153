"""What an observer sees of a grid, read in one pass from the state a step ends in."""

import functools
from collections.abc import Callable, Sequence
from itertools import compress
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from minigrid.core.constants import DIR_TO_VEC
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.symbols import CODES, OPAQUE, spell
from rlpre.tiles import AGENT_SHIFT, HIGHLIGHT

View = Callable[[MiniGridEnv], "Glance"]

_BORDER = Wall()  # what MiniGrid shows beyond the grid
_UP = bytes([HIGHLIGHT | (1 + 3) << AGENT_SHIFT])  # the agent in its own view looks up
_HIGHLIGHTED = bytes(255) + bytes([HIGHLIGHT])
_SEEN = b"\xff"  # a mask, so that hidden symbols become 0, unseen


class Glance(NamedTuple):
    """A frame before it becomes arrays, row by row as seen on screen."""

    symbols: bytes  # one a cell, see envs.symbols
    flags: bytes  # one a cell, see rlpre.tiles
    stock: np.ndarray | None = None  # (3, H, W) uint8: the frame as MiniGrid draws it, if the atlas cannot


def partial(env: MiniGridEnv) -> Glance:
    """The square before the agent, turned so that the agent looks up; what walls hide is unseen.

    Raises:
        UnknownObjectError: if the square holds an object that no symbol stands for.
    """
    symbols, seen, _ = _square(env)
    agent = agent_cell(partial, env)
    # The agent's cell shows what it carries, not what it stands on.
    symbols = symbols[:agent] + spell((env.carrying,)) + symbols[agent + 1 :]
    flags = seen.translate(_HIGHLIGHTED)
    shown = int.from_bytes(symbols) & int.from_bytes(seen)
    return Glance(shown.to_bytes(len(symbols)), flags[:agent] + _UP + flags[agent + 1 :])


def full(env: MiniGridEnv) -> Glance:
    """The whole grid; the cells that the agent sees are highlighted.

    Raises:
        UnknownObjectError: if the grid holds an object that no symbol stands for.
    """
    symbols = spell(env.grid.grid)
    flags = bytearray(len(symbols) + 1)  # the last stands for all cells beyond the grid
    if env.highlight:
        for cell in seen(env):
            flags[cell] = HIGHLIGHT
    flags[agent_cell(full, env)] |= (1 + env.agent_dir) << AGENT_SHIFT
    return Glance(symbols, bytes(flags[:-1]))


def seen(env: MiniGridEnv) -> list[int]:
    """Cells of the grid that the agent sees, row-major; ``width * height`` stands for those beyond it.

    Raises:
        UnknownObjectError: if the square before the agent holds an object that no symbol stands for.
    """
    _, visible, cells = _square(env)
    return list(compress(cells, visible))


VIEWS: dict[str, View] = {"partial": partial, "full": full}


def shape(view: View, env: MiniGridEnv) -> tuple[int, int]:
    """Rows and columns of a view."""
    return (env.height, env.width) if view is full else (env.agent_view_size, env.agent_view_size)


def agent_cell(view: View, env: MiniGridEnv) -> int:
    """Where the agent stands in a view, row-major."""
    if view is full:
        return env.agent_pos[1] * env.grid.width + env.agent_pos[0]
    return env.agent_view_size * (env.agent_view_size - 1) + env.agent_view_size // 2


def encode(glances: Sequence[Glance], rows: int, columns: int) -> np.ndarray:
    """The codes (N, R, C, 3) uint8 of N glances."""
    symbols = b"".join([glance.symbols for glance in glances])
    codes = CODES.take(np.frombuffer(symbols, np.uint8), axis=0)
    codes[:, 2] |= np.frombuffer(b"".join([glance.flags for glance in glances]), np.uint8)
    return codes.reshape(-1, rows, columns, 3)


def _square(env: MiniGridEnv) -> tuple[bytes, bytes, list[int]]:
    """Of each cell before the agent, as seen on screen: its symbol, 255 if it is visible, and where it is."""
    grid = env.grid
    gather, cells = _window(env.agent_view_size, *env.agent_pos, env.agent_dir, grid.width, grid.height)
    symbols = spell(gather([*grid.grid, _BORDER]))
    dark = not env.see_through_walls
    visible = _light(symbols.translate(OPAQUE), env.agent_view_size) if dark else _SEEN * len(symbols)
    return symbols, visible, cells


@functools.lru_cache(maxsize=1 << 16)
def _window(
    size: int, x: int, y: int, direction: int, width: int, height: int
) -> tuple[Callable[[Sequence], Sequence], list[int]]:
    """A getter of the cells of the agent's square and their indices; ``width * height`` is beyond the grid."""
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
    """Light spreading in one row, from the cells lit by the row below: the visible cells, and those lit above."""
    row, above = bytearray(lit), bytearray(len(lit))
    last = len(row) - 1
    for cells, step in ((range(last), 1), (range(last, 0, -1), -1)):
        for i in cells:
            if row[i] and not opaque[i]:
                row[i + step] = above[i + step] = above[i] = _SEEN[0]
    return bytes(row), bytes(above)
