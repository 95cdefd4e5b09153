"""MiniGrid's objects as single bytes: the alphabet that views read a grid in and the atlas draws."""

from collections.abc import Iterable

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj

EMPTY = 1  # 0 is unseen

_DOORS = {
    (color, is_open, is_locked): Door(color, is_open, is_locked)
    for color in COLOR_TO_IDX
    for is_open, is_locked in ((True, False), (False, False), (False, True))
}
_THINGS = {(kind, color): kind(color) for kind in (Wall, Floor, Key, Ball, Box, Goal) for color in COLOR_TO_IDX}
_THINGS[Lava, "red"] = Lava()

# The object that each symbol stands for; symbols 0 (unseen) and 1 (empty) stand for none.
OBJECTS: list[WorldObj | None] = [None, None, *_THINGS.values(), *_DOORS.values()]
# (symbols, 3) uint8: MiniGrid's own (type, color, state).
CODES = np.array([(0, 0, 0), (1, 0, 0), *(thing.encode() for thing in OBJECTS if thing)], dtype=np.uint8)
# bytes.translate table: 1 where a symbol hides what is behind it.
OPAQUE = bytes(thing is not None and not thing.see_behind() for thing in OBJECTS).ljust(256, b"\0")

_SYMBOLS = {key: symbol for symbol, key in enumerate([*_THINGS, *_DOORS], start=2)}


class UnknownObjectError(Exception):
    """The grid holds an object that no symbol stands for."""


def spell(cells: Iterable[WorldObj | None]) -> bytes:
    """The symbols of cells.

    Objects are told apart by their exact class, because a subclass may be drawn differently.

    Raises:
        UnknownObjectError: if an object is not one of MiniGrid's own.
    """
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
