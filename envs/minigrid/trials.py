"""Trials: episodes of any actor in which an expert advises at every step; layouts of levels; regret of actions."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import Wall
from minigrid.minigrid_env import MiniGridEnv

from envs.minigrid.experts import UNKNOWN, Expert, expert_for
from envs.minigrid.worlds import GridWorld, make
from rlpre.errors import RlpreError, lookup

LAYOUTS = 2**15  # the range of a label column
MOST_MISSES = 1000  # resets without a layout of the part before it counts as missing


def layout(world: MiniGridEnv) -> int:
    """A hash in [0, ``LAYOUTS``) of the whole grid, the agent's pose and the mission; call it right after a reset."""
    x, y = world.agent_pos
    state = world.grid.encode().tobytes() + f"{x} {y} {world.agent_dir} {world.mission}".encode()
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest()) % LAYOUTS


def is_test(layout: int) -> bool:
    """Whether this layout is for tests and never demonstrated: a fixed fifth of all layouts."""
    return layout % 5 == 0


def enter(world: GridWorld, seed: int) -> int:
    """Resets a world and returns its layout."""
    world.reset_unrendered(seed)
    return layout(world.grid_env)


@lru_cache(maxsize=64)
def layout_seeds(level: str, part: str, count: int, first: int = 0) -> tuple[int, ...]:
    """The ``count`` lowest reset seeds, from ``first`` on, that give a layout of a part.

    Args:
        level: a registered id.
        part: "train" or "test".
        count: how many.
        first: the lowest seed to try, at least 0.

    Raises:
        RlpreError: if a name or number is wrong, or the level has no layout of that part.
    """
    test = lookup("part", part, {"train": False, "test": True})
    if count < 1 or first < 0:
        raise RlpreError(f"cannot find {count} seeds from {first} on: ask for at least 1, from at least 0 on")
    world, found, seed = make(level), [], first
    while len(found) < count:
        if is_test(enter(world, seed)) == test:
            found.append(seed)
        if seed - (found[-1] if found else first - 1) == MOST_MISSES:
            raise RlpreError(f"{level} has too few layouts for a part {part!r}: choose a level with more")
        seed += 1
    return tuple(found)


@dataclass(frozen=True)
class Trial:
    """One episode of T steps."""

    codes: np.ndarray  # (T + 1, R, C, 3) uint8 codes of the world's atlas, including the final frame
    actions: np.ndarray  # (T,) int64
    advice: np.ndarray  # (T,) int64, the expert's actions; -1 once it has no plan
    reward: np.ndarray  # (T,) float64
    mission: str
    success: bool  # whether the mission was accomplished
    lost: bool  # whether the expert had no plan at some step, for example because a box was opened
    seed: int  # of the reset
    layout: int  # see `layout`
    terminated: bool  # whether the environment ended it, not the time limit


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


class ExpertActor:
    """Follows the expert; does nothing once the expert has no plan."""

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.where(advice == UNKNOWN, Actions.done, advice)  # "done" does nothing


class NoisyActor:
    """Acts as ``actor``, but with this probability draws an action uniformly from all."""

    def __init__(self, actor: Actor, probability: float, rng: np.random.Generator) -> None:
        self.actor, self.probability, self.random = actor, probability, EpisodeRandom(rng)

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        chance, which = self.random.draw(starts, 2).T
        free = (which * len(Actions)).astype(np.int64)
        return np.where(chance < self.probability, free, self.actor.act(frames, missions, advice, starts))


def play(level: str, seeds: Sequence[int], actor: Actor, *, n_envs: int = 32, **look: Any) -> list[Trial]:
    """Plays one episode for each seed; the expert advises at every step, whichever actor acts.

    Args:
        level: a registered id with an expert.
        seeds: of the resets.
        actor: draws the actions.
        n_envs: environments played together; the trials do not depend on it.
        **look: view, tile_size, palette, strength and pictures, as in `envs.make`.

    Returns:
        The trials, in the order of the seeds.

    Raises:
        RlpreError: if a name is wrong, the level has no expert, or there are no seeds or worlds.
    """
    if min(len(seeds), n_envs) < 1:
        raise RlpreError(f"cannot play {len(seeds)} seeds in {n_envs} worlds: give at least one of each")
    slots = [_Slot(make(level, **look), level) for _ in range(min(n_envs, len(seeds)))]
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
        actions, advice, reward = map(np.array, zip(*self.steps, strict=True))
        how = {"mission": self.world.grid_env.mission, "success": bool(reward[-1] > 0), "lost": self.lost}
        how |= {"seed": self.seed, "layout": self.layout, "terminated": self.terminated}
        return Trial(np.stack(self.codes), actions, advice, reward, **how)

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
    """A step and the cost-to-go after each action of a trial (T,), and the cost-to-go in each state (T,).

    Where the advice was ``followed`` (T,) both are the same. So ``costs`` (T + 1,), the cost-to-go by playing on, are
    needed only in the other states and at the end; ``most`` is the largest.
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
    world, regrets = make(level), []
    for trial, asked in zip(trials, choices, strict=True):
        expert = expert_for(world) if enter(world, trial.seed) == trial.layout else None
        if expert is None:
            raise RlpreError(f"the trial of seed {trial.seed} was not played in {level}: give the level of the trials")
        regrets.append(_trial_regrets(world, expert, trial, asked))
    return regrets


def _trial_regrets(world: GridWorld, expert: Expert, trial: Trial, asked: np.ndarray) -> np.ndarray:
    most = float(world.grid_env.max_steps)
    advised, taken = trial.advice[: asked.shape[1]], trial.actions[: asked.shape[1]]
    wrong = (asked != advised) & (advised != UNKNOWN)
    regret = np.where(advised == UNKNOWN, np.nan, np.zeros(asked.shape))
    end = int(np.flatnonzero(wrong.any(axis=0)).max(initial=-1)) + 1
    best, considered = np.full(end + 1, most), {}
    for t in range(end):
        advice, _ = expert.advise(taken[t - 1] if t else None)
        if advice not in (taken[t], UNKNOWN):
            best[t] = cost_to_go(world.grid_env, expert, advice)
        for action in set(asked[wrong[:, t], t].tolist()) - {int(taken[t])}:
            considered[t, action] = cost_to_go(world.grid_env, expert, action)
        world.step_unrendered(int(taken[t]))
    best[end] = _final_cost(world, expert, trial, end)
    after, left = _costs_ahead(taken[:end] == advised[:end], best, most)
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
