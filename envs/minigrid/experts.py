"""Experts that read the true state and advise in every state that a learner reaches; labels for probes."""

import functools
import heapq
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.core.roomgrid import RoomGrid
from minigrid.core.world_object import Door, Goal, Key, WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import AfterInstr, Instr, ObjDesc, PickupInstr, PutNextInstr, SeqInstr
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError, DropSubgoal, GoNextToSubgoal

from envs.minigrid import render
from envs.minigrid.render import UnknownObjectError
from minigrid import envs as grids

# "front" and "carrying": MiniGrid's object type, 1 = nothing; "distance": steps to success; "expert": its action
LABELS = ("front", "carrying", "distance", "expert")
UNKNOWN = -1

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
OPEN, CLOSED, LOCKED = range(3)
FAR = 1_000_000
MOST_UNREACHED = 16  # times in one plan that a seen object cannot be reached: more than the doors on any way

Doors = tuple[int, ...]  # the state of each door
Seed = tuple[int, int, int, int]  # distance, pose, action there, cells on the way (bit mask)


class Expert(Protocol):
    """Advises through one episode; make a new one after each reset."""

    def advise(self, taken: int | None) -> tuple[int, int]:
        """The best action now and the steps to go, each -1 if unknown.

        Args:
            taken: the action that led here, None at the start of the episode.
        """


def labels(world: MiniGridEnv, advice: tuple[int, int]) -> tuple[int, int, int, int]:
    """The values of `LABELS` in the current state; ``advice`` is the expert's (action, distance)."""
    action, distance = advice
    front = world.grid.get(*world.front_pos)
    front, carrying = (OBJECT_TO_IDX[thing.type if thing else "empty"] for thing in (front, world.carrying))
    return front, carrying, distance, action


class Phase(NamedTuple):
    """For each pose (cell * 4 + direction): steps to go, the next action, and the cells on the way as a bit mask."""

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
    """Shortest plans in one episode of a grid with doors, at most one key, and one target; it reads the whole grid.

    A plan is a chain of phases: fetch the key, open the locked door, put the key down where it does not block the way,
    reach the target. Each phase is one backward search over all poses (cell, direction) that starts from the costs of
    the next phase. One search covers every pose that a learner can reach; it is repeated only when a door or the key
    changed. The steps to go are exact, except that a closed door which the plan passes twice counts as closed twice.

    Args:
        env: just reset.
        target: the object that solves the episode.
        act: what to do to it: PICKUP, TOGGLE, or FORWARD to reach it.
    """

    def __init__(self, env: MiniGridEnv, target: WorldObj, act: int) -> None:
        self.env, self.target, self.act, self.width = env, target, act, env.grid.width
        things = dict(enumerate(env.grid.grid))
        self.doors = {cell: thing for cell, thing in things.items() if isinstance(thing, Door)}
        self.key = next((thing for thing in things.values() if isinstance(thing, Key) and thing is not target), None)
        self.bare = {cell for cell, thing in things.items() if thing is None or thing is self.key}
        self.goal = next(cell for cell, thing in things.items() if thing is target)
        self.fixed = [int(c in self.bare or (t.can_overlap() and t.type != "lava")) for c, t in things.items()]
        self._held, self._free, self._last = map(functools.cache, (self._plan_held, self._plan_free, self._plan_last))

    def advise(self, taken: int | None = None) -> tuple[int, int]:
        """The best next action and the steps to go from the current state, or (-1, -1) if there is no way."""
        env = self.env
        if env.grid.grid[self.goal] is not self.target or (env.carrying and env.carrying is not self.key):
            return UNKNOWN, UNKNOWN
        doors = tuple(OPEN if door.is_open else LOCKED if door.is_locked else CLOSED for door in self.doors.values())
        if env.carrying:
            phase = self._held(doors)
        else:
            phase = self._free(doors, self._cell(self.key.cur_pos) if self.key else None)
        pose = 4 * self._cell(env.agent_pos) + int(env.agent_dir)
        return (phase.action[pose], phase.distance[pose]) if phase.distance[pose] < FAR else (UNKNOWN, UNKNOWN)

    def _cell(self, position: tuple[int, int]) -> int:
        return int(position[1] * self.width + position[0])

    def _plan_free(self, doors: Doors, key: int | None) -> Phase:
        """Without the key: go to the target if it can be reached, or to the key first."""
        price = self._prices(doors, key)
        seeds = [] if LOCKED in doors else self._finish(price)
        if key is not None:
            held = self._held(doors)
            seeds += [(held.distance[pose] + 1, pose, PICKUP, 0) for pose in self._facing(key, price)]
        return flood(self.width, price, seeds)

    def _plan_held(self, doors: Doors) -> Phase:
        """With the key: unlock, then go to the target; put the key down first if the target must be picked up."""
        price = self._prices(doors)
        if LOCKED in doors:
            seeds = list(self._unlock(doors, price))
        elif self.act == PICKUP:
            seeds = list(self._put_down(doors, price))
        else:
            seeds = self._finish(price)
        return flood(self.width, price, seeds)

    def _plan_last(self, doors: Doors) -> Phase:
        """Without the key, after it was put down."""
        price = self._prices(doors)
        return flood(self.width, price, self._finish(price))

    def _unlock(self, doors: Doors, price: list[int]) -> Iterator[Seed]:
        locked = list(self.doors)[doors.index(LOCKED)]
        opened = tuple(OPEN if state == LOCKED else state for state in doors)
        after = None if self.act == TOGGLE else self._held(opened)
        for pose in self._facing(locked, price):
            yield 1 + (after.distance[pose] if after else 0), pose, TOGGLE, 0

    def _put_down(self, doors: Doors, price: list[int]) -> Iterator[Seed]:
        last = self._last(doors)
        for cell in self.bare:
            for pose in self._facing(cell, price):
                if last.distance[pose] < FAR and not last.way[pose] >> cell & 1:
                    yield last.distance[pose] + 1, pose, DROP, 0

    def _finish(self, price: list[int]) -> list[Seed]:
        if self.act == FORWARD:
            return [(0, 4 * self.goal + direction, -1, 0) for direction in range(4)]
        return [(1, pose, self.act, 0) for pose in self._facing(self.goal, price)]

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


class Bot(BabyAIBot):
    """The BabyAI bot, but it plans again when its advice was not followed, and it updates its map faster.

    The stock bot first undoes each action that differs from its advice, and often ends without a plan. This bot plans
    as at the start of the episode, with the map that it has seen so far. While the advice is followed both act alike.

    Args:
        mission: an environment that was just reset, with the instruction ``instrs``.
    """

    def __init__(self, mission: RoomGrid) -> None:
        super().__init__(mission)
        self.world: MiniGridEnv = mission.unwrapped
        self.advised: int | None = None
        self.unreached, self.lost = 0, False

    def advise(self, taken: int | None) -> tuple[int, int]:
        """See `Expert`; it does not count steps, and has no advice after a learner opened a box."""
        if not self.lost:
            try:
                return int(self.replan(None if taken is None else Actions(taken))), UNKNOWN
            except (DisappearedBoxError, AssertionError):  # the bot asserts where it has no plan
                self.lost = True
        return UNKNOWN, UNKNOWN

    def replan(self, action_taken: Actions | None = None) -> Actions:
        """The best action now, given the action that led here (None: its own, or the episode begins).

        Raises:
            DisappearedBoxError: if a box was opened.
            AssertionError: if there is no plan.
        """
        if action_taken is not None and action_taken != self.advised:
            self._check_erroneous_box_opening(action_taken)
            self._plan(keep=self._needed())
            action_taken = None
        self.unreached = 0
        try:
            self.advised = super().replan(action_taken)
        except AssertionError:  # its plan fails, most often because it carries something
            self._plan(keep=False)
            self.advised = super().replan()
        return self.advised

    def _plan(self, keep: bool) -> None:
        """Plans the rest of the mission; puts a carried object down first unless ``keep``."""
        self._process_obs()
        self.stack = []
        for instruction in reversed([*_remaining(self.world.instrs)]):
            self._process_instr(instruction)
        if self.world.carrying is None:
            return
        if not keep:
            with suppress(AssertionError):  # no free cell is reachable: the first subgoal opens a door
                place = self._find_drop_pos()
                self.stack += [DropSubgoal(self), GoNextToSubgoal(self, place)]
        elif self._carries():
            del self.stack[-2:]  # the subgoals that fetch the object

    def _needed(self) -> bool:
        """Whether the mission needs the carried object."""
        held = self.world.carrying
        if held is None or held.type != "key" or self._carries():
            return self._carries()
        doors = (cell for cell in self.world.grid.grid if cell and cell.type == "door")
        return any(door.is_locked and door.color == held.color for door in doors)

    def _carries(self) -> bool:
        """Whether the current instruction moves the carried object."""
        now = next(_remaining(self.world.instrs), None)
        return isinstance(now, PutNextInstr) and any(thing is self.world.carrying for thing in now.desc_move.obj_set)

    def _find_obj_pos(self, obj_desc: ObjDesc, adjacent: bool = False) -> tuple[WorldObj | None, tuple | None]:
        try:
            return super()._find_obj_pos(obj_desc, adjacent)
        except AssertionError:  # it was seen, but a door was closed since: exploring opens doors
            self.unreached += 1
            if self.unreached > MOST_UNREACHED:
                raise
            return None, None

    def _find_drop_pos(self, except_pos: tuple | None = None) -> tuple:
        place: tuple | None = super()._find_drop_pos(except_pos)
        if place is None:  # the bot would fail later, when it goes there
            raise AssertionError("there is no free cell to put the object down")
        return place

    def _process_obs(self) -> None:
        try:
            cells = np.array(render.seen(self.world))
        except UnknownObjectError:
            super()._process_obs()
        else:
            y, x = np.divmod(cells[cells < self.world.width * self.world.height], self.world.width)
            self.vis_mask[x, y] = True


def _remaining(instruction: Instr) -> Iterator[Instr]:
    """The parts of an instruction that are not done yet, in their order."""
    if not isinstance(instruction, SeqInstr):
        yield instruction
        return
    parts = [(instruction.instr_a, instruction.a_done), (instruction.instr_b, instruction.b_done)]
    for part, done in reversed(parts) if isinstance(instruction, AfterInstr) else parts:
        if done != "success":
            yield from _remaining(part)


REACH_GOAL = (grids.EmptyEnv, grids.DoorKeyEnv, grids.MultiRoomEnv, grids.CrossingEnv, grids.FourRoomsEnv)
REACH_GOAL += (grids.LavaGapEnv, grids.DistShiftEnv)
PICK_UP_OBJECT = (grids.UnlockPickupEnv, grids.KeyCorridorEnv)
# levels that the bot cannot solve, according to its documentation
UNPLANNED = {f"BabyAI-PutNext{size}Carrying-v0" for size in ("S5N2", "S6N3", "S7N4")} | {"BabyAI-KeyInBox-v0"}


def expert_for(env: gym.Env) -> Expert | None:
    """A new expert for the episode that ``env`` was just reset to; None if no expert solves this environment."""
    world = env.unwrapped
    if isinstance(world, RoomGridLevel):
        return None if world.spec and world.spec.id in UNPLANNED else Bot(world)
    if isinstance(world, grids.BlockedUnlockPickupEnv):  # the same mission as an instruction, which the bot reads
        world.instrs = PickupInstr(ObjDesc(world.obj.type, world.obj.color))
        world.instrs.reset_verifier(world)
        return Bot(world)
    if isinstance(world, REACH_GOAL):
        goal = next(thing for thing in world.grid.grid if isinstance(thing, Goal))
        return Planner(world, goal, FORWARD)
    if isinstance(world, PICK_UP_OBJECT):
        return Planner(world, world.obj, PICKUP)
    if isinstance(world, grids.UnlockEnv):
        return Planner(world, world.door, TOGGLE)
    return None
