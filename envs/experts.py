"""Experts that know the true state and advise in any state a learner got into."""

from typing import Protocol

import gymnasium as gym
from minigrid.core.actions import Actions
from minigrid.core.world_object import Goal
from minigrid.envs import (
    CrossingEnv,
    DistShiftEnv,
    DoorKeyEnv,
    EmptyEnv,
    FourRoomsEnv,
    KeyCorridorEnv,
    LavaGapEnv,
    MultiRoomEnv,
    UnlockEnv,
    UnlockPickupEnv,
)
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import DisappearedBoxError

from envs.bot import Bot
from envs.planner import Planner, Target

REACH_GOAL = (EmptyEnv, DoorKeyEnv, MultiRoomEnv, CrossingEnv, FourRoomsEnv, LavaGapEnv, DistShiftEnv)
PICK_UP_OBJECT = (UnlockPickupEnv, KeyCorridorEnv)
# levels that the bot cannot solve, by its own documentation
UNPLANNED = {
    "BabyAI-PutNextS5N2Carrying-v0",
    "BabyAI-PutNextS6N3Carrying-v0",
    "BabyAI-PutNextS7N4Carrying-v0",
    "BabyAI-KeyInBox-v0",
}


class Expert(Protocol):
    """Advises through one episode; make a new one after each reset."""

    def advise(self, taken: int | None) -> tuple[int, int]:
        """The best action now and the steps to go, each -1 if unknown.

        Args:
            taken: the action that led here, None at the start of the episode.
        """


class PlannerExpert:
    """The breadth-first planner: it needs no history."""

    def __init__(self, env: MiniGridEnv, target: Target) -> None:
        self.planner = Planner(env, target)

    def advise(self, taken: int | None) -> tuple[int, int]:
        return self.planner.advise()


class BotExpert:
    """The BabyAI bot, see `envs.bot`: it gives no steps to go, and no advice after a learner opened a box."""

    def __init__(self, env: RoomGridLevel) -> None:
        self.bot: Bot | None = Bot(env)

    def advise(self, taken: int | None) -> tuple[int, int]:
        if self.bot is None:
            return -1, -1
        try:
            return int(self.bot.replan(None if taken is None else Actions(taken))), -1
        except (DisappearedBoxError, AssertionError):  # the bot asserts where it has no plan
            self.bot = None
            return -1, -1


def expert_for(env: gym.Env) -> Expert | None:
    """A fresh expert for the episode that ``env`` was just reset to, or None if there is none for this world."""
    world = env.unwrapped
    if isinstance(world, RoomGridLevel):
        return None if world.spec and world.spec.id in UNPLANNED else BotExpert(world)
    if isinstance(world, REACH_GOAL):
        goal = next(thing for thing in world.grid.grid if isinstance(thing, Goal))
        return PlannerExpert(world, Target("reach", goal))
    if isinstance(world, PICK_UP_OBJECT):
        return PlannerExpert(world, Target("pickup", world.obj))
    if isinstance(world, UnlockEnv):
        return PlannerExpert(world, Target("toggle", world.door))
    return None
