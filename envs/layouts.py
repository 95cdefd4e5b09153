"""Layouts: what a world looks like after a reset. One fifth of them is for tests and never demonstrated."""

import hashlib
import itertools
from functools import lru_cache

from minigrid.minigrid_env import MiniGridEnv

from envs.worlds import GridWorld, make
from rlpre.errors import RlpreError, lookup

LAYOUTS = 2**15  # as many as a label column can tell apart
PARTS = {"train": False, "test": True}  # name -> what `is_test` says
MOST_MISSES = 1000  # resets without one layout of a part: it has none

_TESTS = 5  # one layout in so many is for tests


def layout(world: MiniGridEnv) -> int:
    """A hash in [0, ``LAYOUTS``) of the whole grid, the agent's pose and the mission; ask right after a reset."""
    x, y = world.agent_pos
    state = world.grid.encode().tobytes() + f"{x} {y} {world.agent_dir} {world.mission}".encode()
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest()) % LAYOUTS


def is_test(layout: int) -> bool:
    """Whether this layout is for tests: one fifth of them, the same for ever."""
    return layout % _TESTS == 0


def enter(world: GridWorld, seed: int) -> int:
    """Resets a world and returns its layout."""
    world.begin(seed)
    return layout(world.grid_env)


def seeds(level: str, part: str, count: int, first: int = 0) -> list[int]:
    """The ``count`` lowest reset seeds, from ``first`` on, that give a layout of a part.

    Args:
        level: a registered id.
        part: "train" or "test".
        count: how many.
        first: the lowest that may be given, at least 0.

    Raises:
        RlpreError: if a name or number is wrong, or the level has no layout of that part.
    """
    test = lookup("part", part, PARTS)
    if count < 1 or first < 0:
        raise RlpreError(f"cannot find {count} seeds from {first} on: ask for at least 1, from at least 0 on")
    return list(_seeds(level, test, count, first))


@lru_cache(maxsize=64)
def _seeds(level: str, test: bool, count: int, first: int) -> tuple[int, ...]:
    world, found, misses = make(level), [], 0
    for seed in itertools.count(first):
        hit = is_test(enter(world, seed)) == test
        misses = 0 if hit else misses + 1
        if hit:
            found.append(seed)
        if len(found) == count:
            break
        if misses == MOST_MISSES:
            part = "test" if test else "train"
            raise RlpreError(f"{level} has too few layouts for a part {part!r}: choose a level with more")
    return tuple(found)
