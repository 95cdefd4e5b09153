"""Shortest plans in MiniGrid worlds with doors, at most one key, and one target.

A plan is a chain of phases: fetch the key, open the locked door, put the key down where it is not in the way, reach the
target. Each phase is one backward search over all poses (cell, direction), seeded with what the next phase costs from
there, so a search labels every pose a learner may get into, and it is needed again only when a door or the key changed.
"""

import functools
import heapq
from collections.abc import Iterator
from typing import Literal, NamedTuple

from minigrid.core.world_object import Door, Key, WorldObj
from minigrid.minigrid_env import MiniGridEnv

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
OPEN, CLOSED, LOCKED = range(3)
FAR = 1_000_000

Doors = tuple[int, ...]  # the state of each door
Seed = tuple[int, int, int, int]  # distance, pose, action there, cells on the way (bit mask)


class Target(NamedTuple):
    """What ends the episode in success: reach, pick up or toggle the object."""

    verb: Literal["reach", "pickup", "toggle"]
    thing: WorldObj


class Phase(NamedTuple):
    """Per pose (cell * 4 + direction): steps to go, the next action, and the cells on the way as a bit mask."""

    distance: list[int]
    action: list[int]
    way: list[int]


def flood(width: int, price: list[int], seeds: list[Seed]) -> Phase:
    """Searches backward from the seeds; entering a cell costs ``price`` steps (0 = never, 2 = toggle a door first)."""
    stride = (1, width, -1, -width)
    poses = 4 * len(price)
    phase = Phase([FAR] * poses, [-1] * poses, [0] * poses)
    heap = sorted(seeds)
    while heap:
        far, pose, action, way = heapq.heappop(heap)
        if phase.distance[pose] <= far:
            continue
        cell, direction = divmod(pose, 4)
        way |= 1 << cell
        phase.distance[pose], phase.action[pose], phase.way[pose] = far, action, way
        heapq.heappush(heap, (far + 1, 4 * cell + (direction + 1) % 4, LEFT, way))
        heapq.heappush(heap, (far + 1, 4 * cell + (direction - 1) % 4, RIGHT, way))
        behind = cell - stride[direction]
        if price[behind]:
            act = FORWARD if price[cell] == 1 else TOGGLE
            heapq.heappush(heap, (far + price[cell], 4 * behind + direction, act, way))
    return phase


class Planner:
    """Plans one episode, with full knowledge of the grid; make a new one after each reset.

    The steps to go are exact except that a closed door which the plan passes twice counts as closed both times.
    """

    def __init__(self, env: MiniGridEnv, target: Target) -> None:
        self.env, self.target, self.width = env, target, env.grid.width
        things = dict(enumerate(env.grid.grid))
        self.doors = {cell: thing for cell, thing in things.items() if isinstance(thing, Door)}
        self.key = next(
            (thing for thing in things.values() if isinstance(thing, Key) and thing is not target.thing), None
        )
        self.bare = {cell for cell, thing in things.items() if thing is None or thing is self.key}
        self.goal = next(cell for cell, thing in things.items() if thing is target.thing)
        self.fixed = [int(c in self.bare or (t.can_overlap() and t.type != "lava")) for c, t in things.items()]
        self._held, self._free, self._last = map(functools.cache, (self._plan_held, self._plan_free, self._plan_last))

    def advise(self) -> tuple[int, int]:
        """The best next action and the steps to go from the environment's state, or (-1, -1) if there is no way."""
        env = self.env
        if env.grid.grid[self.goal] is not self.target.thing or (env.carrying and env.carrying is not self.key):
            return -1, -1
        doors = tuple(OPEN if door.is_open else LOCKED if door.is_locked else CLOSED for door in self.doors.values())
        if env.carrying:
            phase = self._held(doors)
        else:
            x, y = self.key.cur_pos if self.key else (0, 0)
            phase = self._free(doors, int(y * self.width + x) if self.key else None)
        x, y = env.agent_pos
        pose = 4 * int(y * self.width + x) + int(env.agent_dir)
        return (phase.action[pose], phase.distance[pose]) if phase.distance[pose] < FAR else (-1, -1)

    def _plan_free(self, doors: Doors, key: int | None) -> Phase:
        """Empty hands: the target if it can be reached, or the key first."""
        price = self._prices(doors, key)
        seeds = [] if LOCKED in doors else self._finish(price)
        if key is not None:
            held = self._held(doors)
            seeds += [(held.distance[pose] + 1, pose, PICKUP, 0) for pose in self._facing(key, price)]
        return flood(self.width, price, seeds)

    def _plan_held(self, doors: Doors) -> Phase:
        """The key in hand: unlock, then go for the target; where that is to be picked up, put the key down before."""
        price = self._prices(doors)
        if LOCKED in doors:
            seeds = list(self._unlock(doors, price))
        elif self.target.verb == "pickup":
            seeds = list(self._put_down(doors, price))
        else:
            seeds = self._finish(price)
        return flood(self.width, price, seeds)

    def _plan_last(self, doors: Doors) -> Phase:
        """Empty hands and the key out of the way."""
        price = self._prices(doors)
        return flood(self.width, price, self._finish(price))

    def _unlock(self, doors: Doors, price: list[int]) -> Iterator[Seed]:
        locked = list(self.doors)[doors.index(LOCKED)]
        last = self.target.verb == "toggle"
        after = None if last else self._held(tuple(OPEN if state == LOCKED else state for state in doors))
        for pose in self._facing(locked, price):
            yield 1 + (after.distance[pose] if after else 0), pose, TOGGLE, 0

    def _put_down(self, doors: Doors, price: list[int]) -> Iterator[Seed]:
        last = self._last(doors)
        for cell in self.bare:
            for pose in self._facing(cell, price):
                if last.distance[pose] < FAR and not last.way[pose] >> cell & 1:
                    yield last.distance[pose] + 1, pose, DROP, 0

    def _finish(self, price: list[int]) -> list[Seed]:
        if self.target.verb == "reach":
            return [(0, 4 * self.goal + direction, -1, 0) for direction in range(4)]
        action = PICKUP if self.target.verb == "pickup" else TOGGLE
        return [(1, pose, action, 0) for pose in self._facing(self.goal, price)]

    def _prices(self, doors: Doors, key: int | None = None) -> list[int]:
        price = self.fixed.copy()
        for cell, state in zip(self.doors, doors, strict=True):
            price[cell] = (1, 2, 0)[state]
        if key is not None:
            price[key] = 0
        return price

    def _facing(self, cell: int, price: list[int]) -> list[int]:
        """The poses from which ``cell`` is the cell in front."""
        stride = (1, self.width, -1, -self.width)
        return [
            4 * (cell - stride[way]) + way
            for way in range(4)
            if 0 <= cell - stride[way] < len(price) and price[cell - stride[way]]
        ]
