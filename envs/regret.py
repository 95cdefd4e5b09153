"""What a wrong action costs: by how many steps the way that the expert would go grew longer."""

import copy

import numpy as np
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.experts import Expert
from envs.labels import UNKNOWN


def cost_to_go(world: MiniGridEnv, expert: Expert, advice: int) -> float:
    """Steps that the expert needs from here, however many the episode has left; NaN if it has no plan.

    Copies of the world and of the expert, with all that it has explored and planned, are played to the end.

    Args:
        world: in any state.
        expert: of this world's episode.
        advice: what it just advised in this state.

    Returns:
        A whole number of steps, at most the world's ``max_steps``, which also stands for a mission that cannot be
        accomplished any more.
    """
    if advice == UNKNOWN:
        return float("nan")
    walls = {id(cell): cell for cell in world.grid.grid if isinstance(cell, Wall)}  # they never change
    world, expert = copy.deepcopy((world, expert), walls)
    world.step_count = 0
    world.gen_obs = dict  # nobody reads the observations
    for steps in range(1, world.max_steps):
        _, reward, terminated, _, _ = world.step(advice)
        if terminated:
            return float(steps) if reward > 0 else float(world.max_steps)
        advice, _ = expert.advise(advice)
        if advice == UNKNOWN:
            break
    return float(world.max_steps)


def ahead(followed: np.ndarray, costs: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """What the actions of a trial and the advice beside them cost.

    Following the advice costs one step and the cost-to-go from there on, so only the states in which it was not
    followed have to be played out.

    Args:
        followed: (T,) bool, whether the action was the advised one.
        costs: (T + 1,) the cost-to-go in each state, NaN where unknown; read where the advice was not followed, and
            at the end.
        most: the largest cost-to-go.

    Returns:
        (T,) float64, a step and the cost-to-go after each action; (T,) float64, the cost-to-go in each state; NaN where
        a cost that matters is unknown.
    """
    left, after = np.array(costs, float), np.zeros(len(followed))
    for t in reversed(range(len(followed))):
        after[t] = np.minimum(1 + left[t + 1], most)
        if followed[t]:
            left[t] = after[t]
    return after, left[:-1]


def regrets(followed: np.ndarray, costs: np.ndarray, most: int) -> np.ndarray:
    """Of each action, the cost-to-go after it less the cost-to-go after the advised one.

    The expert is no oracle: while it explores, another action can be better than its own, and the regret is below 0.

    Args:
        followed: as in `ahead`.
        costs: as in `ahead`.
        most: as in `ahead`.

    Returns:
        (T,) float64, 0 where the advice was followed, NaN where a cost that matters is unknown.
    """
    after, left = ahead(followed, costs, most)
    return np.where(followed, 0.0, after - left)
