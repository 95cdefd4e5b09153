"""What actions that were not taken would have cost: a trial is played again, with the expert at every step."""

from collections.abc import Sequence

import numpy as np

from envs import layouts
from envs.experts import expert_for
from envs.labels import UNKNOWN
from envs.regret import cost_to_go
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
    expert, taken = None, None
    if layouts.enter(world, trial.seed) == trial.layout:
        expert = expert_for(world)
    if expert is None:
        raise RlpreError(f"the trial of seed {trial.seed} was not played in {level}: give the level of the trials")
    steps, advised = len(trial.actions), trial.advice[: asked.shape[1]]
    regret = np.where(advised == UNKNOWN, np.nan, np.zeros(asked.shape))
    wrong = (asked != advised) & (advised != UNKNOWN)
    # from here on the advice was followed to success, so that the cost to go is what was left of the trial
    followed = np.flatnonzero(trial.actions != trial.advice).max(initial=-1) + 1 if trial.success else steps
    for t in range(np.flatnonzero(wrong.any(axis=0)).max(initial=-1) + 1):
        advice, _ = expert.advise(taken)
        if wrong[:, t].any():
            best = steps - t if t >= followed else cost_to_go(world.grid_env, expert, advice)
            for action in np.unique(asked[wrong[:, t], t]).tolist():
                regret[asked[:, t] == action, t] = cost_to_go(world.grid_env, expert, action) - best
        taken = int(trial.actions[t])
        world.advance(taken)
    return regret
