"""Trials: episodes of any actor in which an expert advises at every step; layouts of levels; regret of actions."""

import copy
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.minigrid.experts import UNKNOWN, Expert, expert_for
from envs.minigrid.worlds import GridWorld, make
from rlpre.errors import RlpreError, lookup

LAYOUTS = 2**15  # the range of a label column
PARTS = {"train": False, "test": True}  # name -> value of `is_test`
MOST_MISSES = 1000  # resets without a layout of the part before it counts as missing

_TESTS = 5  # one in five layouts is for tests and never demonstrated


def layout(world: MiniGridEnv) -> int:
    """A hash in [0, ``LAYOUTS``) of the whole grid, the agent's pose and the mission; call it right after a reset."""
    x, y = world.agent_pos
    state = world.grid.encode().tobytes() + f"{x} {y} {world.agent_dir} {world.mission}".encode()
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest()) % LAYOUTS


def is_test(layout: int) -> bool:
    """Whether this layout is for tests: a fixed fifth of all layouts."""
    return layout % _TESTS == 0


def enter(world: GridWorld, seed: int) -> int:
    """Resets a world and returns its layout."""
    world.reset_unrendered(seed)
    return layout(world.grid_env)


def layout_seeds(level: str, part: str, count: int, first: int = 0) -> list[int]:
    """The ``count`` lowest reset seeds, from ``first`` on, that give a layout of a part.

    Args:
        level: a registered id.
        part: "train" or "test".
        count: how many.
        first: the lowest seed to try, at least 0.

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


@dataclass(frozen=True)
class Trial:
    """One episode of T steps.

    Attributes:
        codes: (T + 1, R, C, 3) uint8 tile codes, including the final frame.
        actions: (T,) int64.
        advice: (T,) int64, the expert's actions; -1 once it has no plan.
        reward: (T,) float64.
        mission: the text of the mission.
        success: whether the mission was accomplished.
        lost: whether the expert had no plan at some step, for example because a box was opened.
        seed: of the reset.
        layout: see `layout`.
        terminated: whether the environment ended it, not the time limit.
    """

    codes: np.ndarray
    actions: np.ndarray
    advice: np.ndarray
    reward: np.ndarray
    mission: str
    success: bool
    lost: bool
    seed: int
    layout: int
    terminated: bool


class Actor(Protocol):
    """Acts in several environments at once, one episode in each slot."""

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Actions (n,) int; those of slots without an episode are ignored.

        Args:
            frames: (n, 3, H, W) uint8.
            missions: n texts.
            advice: (n,) int64, the expert's; -1 where it has none.
            starts: (n,) bool, whether this is the first step of an episode.
        """
        ...


class EpisodeRandom:
    """Random numbers for an actor, one stream for each episode, so that they do not depend on the number of slots.

    Seeds are given to slots in order, so the k-th episode to start is that of the k-th seed.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.entropy = int(rng.integers(2**63))
        self.episodes = 0
        self.streams: dict[int, np.random.Generator] = {}

    def draw(self, starts: np.ndarray, size: int) -> np.ndarray:
        """(n, size) floats in [0, 1); ``starts`` (n,) marks slots that start an episode. Call it once a step."""
        for slot in np.flatnonzero(starts).tolist():
            self.streams[slot] = np.random.default_rng([self.entropy, self.episodes])
            self.episodes += 1
        return np.stack([self.streams[slot].random(size) for slot in range(len(starts))])


class _Expert:
    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.where(advice == UNKNOWN, Actions.done, advice)  # "done" does nothing


class _Noisy:
    def __init__(self, actor: Actor, probability: float, rng: np.random.Generator) -> None:
        self.actor, self.probability, self.random = actor, probability, EpisodeRandom(rng)

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        chance, which = self.random.draw(starts, 2).T
        free = (which * len(Actions)).astype(np.int64)
        return np.where(chance < self.probability, free, self.actor.act(frames, missions, advice, starts))


def expert() -> Actor:
    """Follows the expert; does nothing once the expert has no plan."""
    return _Expert()


def noisy(actor: Actor, probability: float, rng: np.random.Generator) -> Actor:
    """Acts as ``actor``, but with this probability draws an action uniformly from all."""
    return _Noisy(actor, probability, rng)


def play(
    level: str,
    seeds: Sequence[int],
    actor: Actor,
    *,
    n_envs: int = 32,
    view: str = "partial",
    tile_size: int = 8,
    palette: str = "day",
) -> list[Trial]:
    """Plays one episode for each seed; the expert advises at every step, whichever actor acts.

    Args:
        level: a registered id with an expert.
        seeds: of the resets.
        actor: draws the actions.
        n_envs: environments played together; the trials do not depend on it.
        view: as in `envs.make`.
        tile_size: as in `envs.make`.
        palette: as in `envs.make`.

    Returns:
        The trials, in the order of the seeds.

    Raises:
        RlpreError: if a name is wrong, the level has no expert, or there are no seeds or worlds.
    """
    if min(len(seeds), n_envs) < 1:
        raise RlpreError(f"cannot play {len(seeds)} seeds in {n_envs} worlds: give at least one of each")
    slots = [_Slot(make(level, view, tile_size, palette), level) for _ in range(min(n_envs, len(seeds)))]
    trials: dict[int, Trial] = {}
    waiting = iter(range(len(seeds)))
    playing = {slot: next(waiting) for slot in slots}
    for slot, number in playing.items():
        slot.begin(seeds[number])
    while playing:
        codes, frames = slots[0].world.render_frames([slot.world.frame for slot in slots])
        actions = actor.act(
            frames,
            [slot.world.grid_env.mission for slot in slots],
            np.array([slot.advice for slot in slots]),
            np.array([slot in playing and not slot.steps for slot in slots]),
        )
        for slot, code, action in zip(slots, codes, actions.tolist(), strict=True):
            if slot in playing and slot.step(code, action):
                trials[playing.pop(slot)] = slot.trial()
                if (number := next(waiting, None)) is not None:
                    playing[slot] = number
                    slot.begin(seeds[number])
    return [trials[number] for number in range(len(seeds))]


class _Slot:
    """An environment, its expert, and the episode so far."""

    def __init__(self, world: GridWorld, level: str) -> None:
        self.world, self.level = world, level

    def begin(self, seed: int) -> None:
        self.seed, self.layout = seed, enter(self.world, seed)
        expert = expert_for(self.world)
        if expert is None:
            raise RlpreError(f"there is no expert for {self.level}: choose a level of BabyAI that its bot can solve")
        self.expert, self.lost = expert, False
        self.codes: list[np.ndarray] = []
        self.steps: list[tuple[int, int, float]] = []  # action, advice, reward
        self._ask(None)

    def step(self, codes: np.ndarray, action: int) -> bool:
        """Acts on the frame with these codes; returns whether the episode ended."""
        self._keep(codes)
        reward, self.terminated, truncated, _ = self.world.step_unrendered(action)
        self.steps.append((action, self.advice, reward))
        if not self.terminated:
            self._ask(action)
        return self.terminated or truncated

    def trial(self) -> Trial:
        """The episode, when it has ended."""
        self._keep(self.world.render_frames([self.world.frame])[0][0])
        action, advice, reward = map(np.array, zip(*self.steps, strict=True))
        return Trial(
            codes=np.stack(self.codes),
            actions=action,
            advice=advice,
            reward=reward,
            mission=self.world.grid_env.mission,
            success=bool(reward[-1] > 0),
            lost=self.lost,
            seed=self.seed,
            layout=self.layout,
            terminated=self.terminated,
        )

    def _ask(self, taken: int | None) -> None:
        self.advice, _ = self.expert.advise(taken)
        self.lost |= self.advice == UNKNOWN

    def _keep(self, codes: np.ndarray) -> None:
        if self.world.frame.stock is not None:
            raise RlpreError(f"{self.level} holds an object without a tile: trials are kept as tile codes")
        self.codes.append(codes)


def cost_to_go(world: MiniGridEnv, expert: Expert, advice: int) -> float:
    """Steps that the expert needs from here, without the time limit of the episode; NaN if it has no plan.

    Copies of the environment and of the expert, with its map and plan, are played to the end.

    Args:
        world: in any state.
        expert: of this episode.
        advice: its action in this state.

    Returns:
        A whole number of steps, at most ``max_steps``, which also means that the mission cannot be accomplished.
    """
    if advice == UNKNOWN:
        return float("nan")
    walls = {id(cell): cell for cell in world.grid.grid if isinstance(cell, Wall)}  # they never change
    world, expert = copy.deepcopy((world, expert), walls)
    world.step_count = 0
    world.gen_obs = dict  # observations are not used
    for steps in range(1, world.max_steps):
        _, reward, terminated, _, _ = world.step(advice)
        if terminated:
            return float(steps) if reward > 0 else float(world.max_steps)
        advice, _ = expert.advise(advice)
        if advice == UNKNOWN:
            break
    return float(world.max_steps)


def _costs_ahead(followed: np.ndarray, costs: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The costs of the actions of a trial, and of following the advice.

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


def choice_regrets(level: str, trials: Sequence[Trial], choices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The regret of actions that were considered in the states of trials.

    The regret is the expert's cost-to-go after the action, minus its cost-to-go after the advised action. It can be
    negative: while the expert explores, another action can be better than its own.

    Args:
        level: of the trials.
        trials: of any actor.
        choices: for each trial, (K, t) K actions at each of its first t steps.

    Returns:
        For each trial (K, t) float64 in steps, 0 for advised actions, NaN where the expert had no plan.

    Raises:
        RlpreError: if the trials are of another level.
    """
    world = make(level)
    return [_trial_regrets(world, level, trial, asked) for trial, asked in zip(trials, choices, strict=True)]


def _trial_regrets(world: GridWorld, level: str, trial: Trial, asked: np.ndarray) -> np.ndarray:
    expert = None
    if enter(world, trial.seed) == trial.layout:
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
        world.step_unrendered(int(taken[t]))
    best[end] = _final_cost(world, expert, trial, end)
    after, left = _costs_ahead(taken[:end] == advised[:end], best, world.grid_env.max_steps)
    for k, t in np.argwhere(wrong).tolist():
        regret[k, t] = considered.get((t, int(asked[k, t])), after[t]) - left[t]
    return regret


def _final_cost(world: GridWorld, expert: Expert, trial: Trial, end: int) -> float:
    """The cost-to-go after ``end`` steps of a trial, in the state that its environment and expert have reached."""
    unfollowed = np.flatnonzero(trial.actions != trial.advice).max(initial=-1)
    if trial.success and end > unfollowed:
        return float(len(trial.actions) - end)
    if trial.terminated and end == len(trial.actions):
        return float(world.grid_env.max_steps)
    advice, _ = expert.advise(int(trial.actions[end - 1]) if end else None)
    return float(world.grid_env.max_steps) if advice == UNKNOWN else cost_to_go(world.grid_env, expert, advice)


seeds = layout_seeds  # ALIAS
Dice = EpisodeRandom  # ALIAS
EpisodeRandom.roll = EpisodeRandom.draw  # ALIAS


def train_seeds(level: str, count: int, first: int = 0) -> list[int]:  # ALIAS
    return layout_seeds(level, "train", count, first)


def test_seeds(level: str, count: int) -> list[int]:  # ALIAS
    return layout_seeds(level, "test", count)
