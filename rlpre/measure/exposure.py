"""Exposure bias: what a policy gets wrong on the expert's contexts and on its own.

A policy is asked for an action at every step of the same test episodes in four contexts, which cross whose states it
sees with whose action tokens stand in its history; an expert labels every step:

================  =======================  ============================
.                 expert's action tokens   learner's own action tokens
================  =======================  ============================
expert's states   EE (teacher-forced)      EO (the history channel)
learner's states  OE (the state channel)   OO (free-running)
================  =======================  ============================

In OE the tokens are those that the expert would have chosen in the learner's states.

All that is said about them is a function of means over seeds and episodes (`tabulate`, `summary`), so that
`rlpre.measure.crossed` can give it an interval. Errors are added up in two ways. Padded: an episode that has ended errs
no more; these are errors per episode. Alive only: the share of the episodes that still run; late steps then speak of
the hard episodes alone.

References:
    [0] Ross and Bagnell 2010, Efficient reductions for imitation learning.
        https://proceedings.mlr.press/v9/ross10a.html
    [1] Arora et al. 2022, Why exposure bias matters. https://arxiv.org/abs/2204.01171
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlpre.errors import RlpreError
from rlpre.files import atomic

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONTEXTS = ("EE", "EO", "OE", "OO")
EE, EO, OE, OO = range(4)
# What `tabulate` counts at each step.
ERROR, REGRET, NLL, RUNNING, CHANCE, RECOVERED = range(6)
SMALL = 0.3  # errors per episode up to which they can still grow: the slope is fitted there
FEWEST_POINTS = 3  # of that fit


@dataclass(frozen=True)
class Context:
    """What one policy does in one context, on E test episodes of at most T steps.

    Episodes are the same, in the same order, in all contexts of all policies of a level, so that they can be paired.
    One that had to be dropped keeps its place and has no living step.

    Attributes:
        wrong: (E, T) bool, the policy's action is not the expert's.
        nll: (E, T) -log p of the expert's action, in nats.
        regret: (E, T) how much the policy's action raises the expert's cost to go, in steps; NaN where it was not
            measured, and nothing is needed where the action is the expert's. Above 0 it is a regret error: several
            actions can be as good as the expert's.
        alive: (E, T) bool, the episode still runs at this step; what the other arrays hold elsewhere does not count.
        success: (E,) bool, the episode whose states these are (the expert's in EE and EO) reached its goal.

    Raises:
        RlpreError: if shapes differ, an episode rises from the dead, or a likelihood is not finite.
    """

    wrong: Bools
    nll: Floats
    regret: Floats
    alive: Bools
    success: Bools

    def __post_init__(self) -> None:
        for name, kind in (("wrong", bool), ("nll", float), ("regret", float), ("alive", bool), ("success", bool)):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if self.alive.ndim != 2 or len({*list(shapes.values())[:-1]}) > 1 or self.success.shape != self.alive.shape[:1]:
            raise RlpreError(f"a context is (episodes, steps) and its success (episodes,), these are {shapes}")
        if np.any(self.alive[:, 1:] > self.alive[:, :-1]):
            raise RlpreError("an episode of a context is alive after its end: alive must be True up to the last step")
        if not np.isfinite(self.nll[self.alive]).all():
            raise RlpreError("a context's nll is not finite at a step that counts: look at the policy's logits")

    @property
    def kept(self) -> Bools:
        """(E,) the episodes that were not dropped."""
        return np.asarray(self.alive.any(axis=1))

    @property
    def counts(self) -> Floats:
        """(6, E, T) at each step, 0 after an episode's end.

        An error, a regret error, the nll, 1 if the episode runs, 1 if it runs and the step before was wrong, 1 if then
        this step is right.
        """
        regret = np.where(np.isnan(self.regret), np.nan, self.regret > 0)
        before = np.pad(self.wrong, ((0, 0), (1, 0)))[:, :-1]
        every = (self.wrong, np.where(self.wrong, regret, 0.0), self.nll, self.alive, before, before & ~self.wrong)
        return np.where(self.alive, np.array(every, dtype=np.float64), 0.0)


@dataclass(frozen=True)
class Switches:
    """Success of test episodes in which learner and expert take turns once.

    Attributes:
        steps: (K,) int, increasing: the first acts for so many steps, then the other to the end.
        learner_first: (K, E) bool, the learner begins: can the expert repair what it did?
        expert_first: (K, E) bool, the expert begins: does a good start help the learner?
    """

    steps: NDArray[np.int64]
    learner_first: Bools
    expert_first: Bools


def save_contexts(path: Path, contexts: Mapping[str, Context], switches: Switches | None = None) -> None:
    """Writes the four contexts of one policy, and its switch curves if there are any, as one ``.npz`` file."""
    arrays = {
        f"{name}.{field.name}": getattr(contexts[name], field.name) for name in CONTEXTS for field in fields(Context)
    }
    if switches is not None:
        arrays |= {f"switches.{field.name}": getattr(switches, field.name) for field in fields(Switches)}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_contexts(path: Path) -> tuple[dict[str, Context], Switches | None]:
    """Reads what `save_contexts` wrote.

    Raises:
        RlpreError: if the file is missing or damaged, or its contexts do not have the same episodes.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            contexts = {
                name: Context(*(file[f"{name}.{field.name}"] for field in fields(Context))) for name in CONTEXTS
            }
            names = [f"switches.{field.name}" for field in fields(Switches)]
            switches = Switches(*(file[name] for name in names)) if names[0] in file else None
    except FileNotFoundError as error:
        raise RlpreError(f"{path} is missing: measure the policy's four contexts first") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise RlpreError(f"{path} is damaged ({error}): delete {path.parent} and run the study again") from error
    episodes = {name: len(context.success) for name, context in contexts.items()}
    if len(set(episodes.values())) > 1:
        raise RlpreError(f"the contexts of {path} have different numbers of episodes, {episodes}: use the same in all")
    return contexts, switches


def tabulate(contexts: Mapping[str, Context], steps: int) -> Floats:
    """(E, 4, 6, steps): for every episode and context what `Context.counts` says of its first steps."""
    tables = [contexts[name].counts[..., :steps] for name in CONTEXTS]
    padded = [np.pad(table, ((0, 0), (0, 0), (0, steps - table.shape[-1]))) for table in tables]
    return np.stack(padded).transpose(2, 0, 1, 3)


@dataclass(frozen=True)
class Sample:
    """The contexts of one policy, trained with several seeds.

    Attributes:
        seeds: (S,).
        steps: (S, E, 4, 6, T) float32, `tabulate` of each seed.
        success: (S, E, 2) of EE and OO.
        kept: (S, E) episodes that were dropped in no context.
    """

    seeds: tuple[int, ...]
    steps: NDArray[np.float32]
    success: Floats
    kept: Bools

    @classmethod
    def gather(cls, runs: Mapping[int, Mapping[str, Context]], steps: int) -> "Sample":
        """The sample of the runs' contexts by seed, all with the same number of episodes, up to a horizon in steps."""
        success = [np.stack([of[name].success for name in ("EE", "OO")], axis=-1) for of in runs.values()]
        kept = [np.all([context.kept for context in of.values()], axis=0) for of in runs.values()]
        table = np.stack([tabulate(of, steps).astype(np.float32) for of in runs.values()])
        return cls(tuple(runs), table, np.stack(success).astype(np.float64), np.stack(kept))

    def of(self, seeds: Sequence[int]) -> "Sample":
        """The part of some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return Sample(tuple(seeds), self.steps[rows], self.success[rows], self.kept[rows])


def rates(errors: Floats, running: Floats) -> Floats:
    """Errors among the episodes that still run, (..., T); NaN where none does."""
    return _ratio(errors, running)


def accumulated(free: Floats, forced: Floats) -> Floats:
    """AccErr(l) [1]: the errors of OO up to step l over the mean error of a step of EE, at every l.

    It is l if errors do not accumulate, at most l^2 if every error ruins all that follows [0].

    Args:
        free: (..., T) errors of OO at each step, padded or alive only.
        forced: (..., T) the same of EE.

    Returns:
        (..., T); NaN as long as EE made no error.
    """
    total = forced.cumsum(axis=-1)
    ratio = np.divide(free.cumsum(axis=-1), total, out=np.full_like(total, np.nan), where=total > 0)
    return np.asarray(ratio * np.arange(1, free.shape[-1] + 1))


def slope(free: Floats, forced: Floats) -> Floats:
    """The growth d log AccErr(l) / d log l, fitted by least squares while the errors of OO up to l are below `SMALL`.

    1: errors do not grow with time, however many they are; 2: they grow as fast as they can.

    Args:
        free: (..., T) errors of OO at each step.
        forced: (..., T) the same of EE.

    Returns:
        (...); NaN with fewer than `FEWEST_POINTS` points.
    """
    found = accumulated(free, forced)
    used = (found > 0) & (free.cumsum(axis=-1) < SMALL)
    x = np.where(used, np.log(np.arange(1, free.shape[-1] + 1)), 0.0)
    y = np.log(found, out=np.zeros_like(found), where=used)
    points = used.sum(axis=-1)
    n = np.maximum(points, 1)
    spread = (x * x).sum(axis=-1) - x.sum(axis=-1) ** 2 / n
    together = (x * y).sum(axis=-1) - x.sum(axis=-1) * y.sum(axis=-1) / n
    return np.asarray(np.where(points >= FEWEST_POINTS, _ratio(together, spread), np.nan))


def summary(means: Floats, measure: int) -> dict[str, Floats]:
    """The figures of one policy by one measure, `ERROR` or `REGRET`.

    Args:
        means: (..., 4, 6, T) means of `tabulate` over seeds and episodes.
        measure: what counts as an error.

    Returns:
        Each (...), NaN where it is not known:
        EE, EO, OE, OO: errors per episode up to step T, padded;
        excess: OO - EE; excess percent: of EE (%ExAccErr [1]); the same alive only;
        history: EO - EE; state: OE - EE; interaction: OO - EO - OE + EE;
        slope: see `slope`.
    """
    errors, running = means[..., measure, :], means[..., RUNNING, :]
    ee, eo, oe, oo = np.moveaxis(errors.sum(axis=-1), -1, 0)
    common = (running > 0).all(axis=-2, keepdims=True)  # beyond it there is nothing to compare with
    alive = np.where(common, rates(errors, running), 0.0).sum(axis=-1)
    return {
        **dict(zip(CONTEXTS, (ee, eo, oe, oo), strict=True)),
        "excess": oo - ee,
        "excess percent": 100 * _ratio(oo - ee, ee),
        "excess alive": alive[..., OO] - alive[..., EE],
        "excess percent alive": 100 * _ratio(alive[..., OO] - alive[..., EE], alive[..., EE]),
        "history": eo - ee,
        "state": oe - ee,
        "interaction": oo - eo - oe + ee,
        "slope": slope(errors[..., OO, :], errors[..., EE, :]),
    }


def recovery(means: Floats) -> Floats:
    """(..., 4) by context P(right at t + 1 | wrong at t); means (..., 4, 6, T)."""
    return _ratio(means[..., RECOVERED, :].sum(axis=-1), means[..., CHANCE, :].sum(axis=-1))


def mean_nll(means: Floats) -> Floats:
    """(..., 4) by context the mean nll of a step, in nats; means (..., 4, 6, T)."""
    return _ratio(means[..., NLL, :].sum(axis=-1), means[..., RUNNING, :].sum(axis=-1))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))
