"""What actions that were not taken would have cost: a trial is played again, with the expert at every step."""

from collections.abc import Sequence

import numpy as np

from envs import layouts
from envs.experts import Expert, expert_for
from envs.labels import UNKNOWN
from envs.regret import ahead, cost_to_go
from envs.trials import Trial
from envs.worlds import GridWorld, make
from rlpre.errors import RlpreError


def choice_regrets(level: str, trials: Sequence[Trial], choices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Regret of actions that were considered in the states of trials, see `envs.regret.regrets`.

    Args:
        level: that the trials are of.
        trials: played by anyone.
        choices: for each trial, (K, t) K actions at each of its first t steps.

    Returns:
        For each trial (K, t) float64, 0 for advised actions, NaN where the expert had no plan.

    Raises:
        RlpreError: if the trials are of another level.
    """
    world = make(level)
    return [_along(world, level, trial, asked) for trial, asked in zip(trials, choices, strict=True)]


def _along(world: GridWorld, level: str, trial: Trial, asked: np.ndarray) -> np.ndarray:
    expert = None
    if layouts.enter(world, trial.seed) == trial.layout:
        expert = expert_for(world)
    if expert is None:
        raise RlpreError(f"the trial of seed {trial.seed} was not played in {level}: give the level of the trials")
    advised, taken = trial.advice[: asked.shape[1]], trial.actions[: asked.shape[1]]
    wrong = (asked != advised) & (advised != UNKNOWN)
    regret = np.where(advised == UNKNOWN, np.nan, np.zeros(asked.shape))
    end = int(np.flatnonzero(wrong.any(axis=0)).max(initial=-1)) + 1
    best, considered = np.full(end + 1, float(world.grid_env.max_steps)), {}
    for t in range(end):
        advice, _ = expert.advise(taken[t - 1] if t else None)
        if advice not in (taken[t], UNKNOWN):
            best[t] = cost_to_go(world.grid_env, expert, advice)
        for action in set(asked[wrong[:, t], t].tolist()) - {int(taken[t])}:
            considered[t, action] = cost_to_go(world.grid_env, expert, action)
        world.advance(int(taken[t]))
    best[end] = _left(world, expert, trial, end)
    after, left = ahead(taken[:end] == advised[:end], best, world.grid_env.max_steps)
    for k, t in np.argwhere(wrong).tolist():
        regret[k, t] = considered.get((t, int(asked[k, t])), after[t]) - left[t]
    return regret


def _left(world: GridWorld, expert: Expert, trial: Trial, end: int) -> float:
    """The cost-to-go after so many steps of a trial, to which its world and expert came."""
    unfollowed = np.flatnonzero(trial.actions != trial.advice).max(initial=-1)
    if trial.success and end > unfollowed:
        return float(len(trial.actions) - end)
    if trial.terminated and end == len(trial.actions):
        return float(world.grid_env.max_steps)
    advice, _ = expert.advise(int(trial.actions[end - 1]) if end else None)
    return float(world.grid_env.max_steps) if advice == UNKNOWN else cost_to_go(world.grid_env, expert, advice)
