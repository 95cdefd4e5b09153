"""Trials: one episode a seed, played by anyone, in which the expert advises at every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from minigrid.core.actions import Actions

from envs import layouts
from envs.experts import expert_for
from envs.labels import UNKNOWN
from envs.regret import cost_to_go, regrets
from envs.worlds import GridWorld, make
from rlpre.errors import RlpreError


@dataclass(frozen=True)
class Trial:
    """What happened in one episode of T steps.

    Attributes:
        codes: (T + 1, R, C, 3) uint8 tile codes, the frame that it ended on last.
        actions: (T,) int64, what was done.
        advice: (T,) int64, what the expert would have done; -1 once it lost its plan.
        regret: (T,) float64, how many steps the action cost, see `envs.regret.regrets`; NaN where unknown or not asked.
        reward: (T,) float64.
        mission: what the agent was told.
        success: whether the mission was accomplished.
        lost: whether the expert lost its plan, because somebody opened a box for example.
        seed: of the reset.
        layout: see `envs.layouts.layout`.
        terminated: whether the world ended it, not the time limit.
    """

    codes: np.ndarray
    actions: np.ndarray
    advice: np.ndarray
    regret: np.ndarray
    reward: np.ndarray
    mission: str
    success: bool
    lost: bool
    seed: int
    layout: int
    terminated: bool


class Actor(Protocol):
    """Plays several worlds at once, each in a slot of its own."""

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Actions (n,); those of slots whose seeds ran out are ignored.

        Args:
            frames: (n, 3, H, W) uint8.
            missions: n texts.
            advice: (n,) int64, the expert's; -1 where it has none.
            starts: (n,) bool, where an episode takes its first step.
        """
        ...


class Dice:
    """Random numbers for an actor: a stream for each episode, so that the number of slots changes nothing.

    Seeds are handed to slots in order, so the k-th episode to start is that of the k-th seed.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.entropy = int(rng.integers(2**63))
        self.episodes = 0
        self.streams: dict[int, np.random.Generator] = {}

    def roll(self, starts: np.ndarray, size: int) -> np.ndarray:
        """(n, size) floats in [0, 1), given which of n slots start an episode; call once a step."""
        for slot in np.flatnonzero(starts).tolist():
            self.streams[slot] = np.random.default_rng([self.entropy, self.episodes])
            self.episodes += 1
        return np.stack([self.streams[slot].random(size) for slot in range(len(starts))])


class _Expert:
    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        return np.where(advice == UNKNOWN, Actions.done, advice)  # "done" does nothing


class _Noisy:
    def __init__(self, actor: Actor, probability: float, rng: np.random.Generator) -> None:
        self.actor, self.probability, self.dice = actor, probability, Dice(rng)

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        chance, which = self.dice.roll(starts, 2).T
        free = (which * len(Actions)).astype(np.int64)
        return np.where(chance < self.probability, free, self.actor.act(frames, missions, advice, starts))


def expert() -> Actor:
    """Does what the expert advises, and nothing once it lost its plan."""
    return _Expert()


def noisy(actor: Actor, probability: float, rng: np.random.Generator) -> Actor:
    """Does what ``actor`` does, but with this probability an action drawn uniformly from all."""
    return _Noisy(actor, probability, rng)


def train_seeds(level: str, count: int, first: int = 0) -> list[int]:
    """Reset seeds, from ``first`` on, of layouts to learn from; see `envs.layouts.seeds`."""
    return layouts.seeds(level, "train", count, first)


def test_seeds(level: str, count: int) -> list[int]:
    """Reset seeds of layouts for tests, always the same; see `envs.layouts.seeds`."""
    return layouts.seeds(level, "test", count)


def play(
    level: str,
    seeds: Sequence[int],
    actor: Actor,
    *,
    regret: bool = False,
    n_envs: int = 32,
    view: str = "partial",
    tile_size: int = 8,
    palette: str = "day",
) -> list[Trial]:
    """Plays one episode a seed; the expert advises at every step, whoever acts.

    Args:
        level: a registered id with an expert.
        seeds: of the resets.
        actor: who acts.
        regret: asks what every action that the expert did not advise cost; that takes a play to the end for each.
        n_envs: worlds played together; the trials do not depend on it.
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
    slots = [_Slot(make(level, view, tile_size, palette), level, regret) for _ in range(min(n_envs, len(seeds)))]
    trials: dict[int, Trial] = {}
    waiting = iter(range(len(seeds)))
    playing = {slot: next(waiting) for slot in slots}
    for slot, number in playing.items():
        slot.begin(seeds[number])
    while playing:
        codes, frames = slots[0].world.develop([slot.world.glance for slot in slots])
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
    """A world, its expert, and what happened in the episode so far."""

    def __init__(self, world: GridWorld, level: str, regret: bool) -> None:
        self.world, self.level, self.regret = world, level, regret

    def begin(self, seed: int) -> None:
        self.seed, self.layout = seed, layouts.enter(self.world, seed)
        expert = expert_for(self.world)
        if expert is None:
            raise RlpreError(f"there is no expert for {self.level}: choose a level of BabyAI that its bot can solve")
        self.expert, self.lost = expert, False
        self.codes: list[np.ndarray] = []
        self.steps: list[tuple[int, int, float]] = []  # action, advice, reward
        self.costs: list[float] = []
        self._ask(None)

    def step(self, codes: np.ndarray, action: int) -> bool:
        """Acts on the frame that ``codes`` stand for; returns whether that ended the episode."""
        self._keep(codes)
        self.costs.append(self._cost() if action != self.advice else float("nan"))
        reward, self.terminated, truncated, _ = self.world.advance(action)
        self.steps.append((action, self.advice, reward))
        if not self.terminated:
            self._ask(action)
        return self.terminated or truncated

    def trial(self) -> Trial:
        """The episode, when it has ended."""
        self._keep(self.world.develop([self.world.glance])[0][0])
        action, advice, reward = map(np.array, zip(*self.steps, strict=True))
        followed, success = action == advice, bool(reward[-1] > 0)
        regret = np.full(len(action), np.nan)
        if self.regret:
            most = self.world.grid_env.max_steps
            unsolved = 0.0 if followed.all() else most if self.terminated else self._cost()
            regret = regrets(followed, np.array([*self.costs, 0.0 if success else unsolved]), most)
        return Trial(
            codes=np.stack(self.codes),
            actions=action,
            advice=advice,
            regret=regret,
            reward=reward,
            mission=self.world.grid_env.mission,
            success=success,
            lost=self.lost,
            seed=self.seed,
            layout=self.layout,
            terminated=self.terminated,
        )

    def _ask(self, taken: int | None) -> None:
        self.advice, _ = self.expert.advise(taken)
        self.lost |= self.advice == UNKNOWN

    def _cost(self) -> float:
        return cost_to_go(self.world.grid_env, self.expert, self.advice) if self.regret else float("nan")

    def _keep(self, codes: np.ndarray) -> None:
        if self.world.glance.stock is not None:
            raise RlpreError(f"{self.level} holds an object without a code: trials are kept as tile codes")
        self.codes.append(codes)
