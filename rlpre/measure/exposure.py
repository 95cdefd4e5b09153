"""Exposure bias: what a policy gets wrong on the expert's contexts and on its own.

A policy is asked for an action at every step of the same test episodes in four contexts, which cross whose states it
sees with whose action tokens stand in its history; an expert labels every step:

====================  =======================  ============================
.                     expert's action tokens   learner's own action tokens
====================  =======================  ============================
expert's states       EE (teacher-forced)      EO (the history channel)
learner's states      OE (the state channel)   OO (free-running)
====================  =======================  ============================

In OE the tokens are those that the expert would have chosen in the learner's states.

Everything that is said about them is a function of means over seeds and episodes, so that `rlpre.measure.crossed` can
give it an interval. The functions here take such means: ``free`` (OO) and ``forced`` (EE) are errors per episode at
each step, (..., T), where an episode that has ended counts as 0 (padded), or shares of the episodes that still run
(alive only, `rates`).

References:
    [0] Ross and Bagnell 2010, Efficient reductions for imitation learning.
        https://proceedings.mlr.press/v9/ross10a.html
    [1] Arora et al. 2022, Why exposure bias matters. https://arxiv.org/abs/2204.01171
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlpre.errors import RlpreError
from rlpre.files import atomic

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONTEXTS = ("EE", "EO", "OE", "OO")
ERROR, REGRET, NLL = "error", "regret error", "nll"


@dataclass(frozen=True)
class Context:
    """What one policy does in one context, on E test episodes of at most T steps.

    Episodes are the same, in the same order, in all contexts of all policies of a level, so that they can be paired.
    One that had to be dropped keeps its place and has no living step.

    Attributes:
        wrong: (E, T) bool, the policy's action is not the expert's.
        nll: (E, T) -log p of the expert's action, in nats.
        regret: (E, T) how much the policy's action raises the expert's cost to go, in steps; 0 if it is the expert's,
            NaN if it was not measured. Above 0 it is a regret error: several actions can be as good as the expert's.
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

    def per_step(self, measure: str, steps: int) -> Floats:
        """(E, steps) one of `ERROR`, `REGRET` and `NLL` at each of the first steps; 0 after an episode's end.

        Raises:
            RlpreError: if it is the regret, and was not measured at every step.
        """
        if measure == REGRET and np.isnan(self.regret[self.alive]).any():
            raise RlpreError("the regret was not measured at every step of a context: let the expert play it out")
        values = {ERROR: self.wrong, REGRET: self.regret > 0, NLL: self.nll}[measure]
        return _first(np.where(self.alive, values, 0.0), steps)

    def running(self, steps: int) -> Floats:
        """(E, steps) 1 where the episode still runs."""
        return _first(self.alive.astype(np.float64), steps)


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


def rates(errors: Floats, running: Floats) -> Floats:
    """Errors among the episodes that still run, (..., T); NaN where none does."""
    return np.divide(errors, running, out=np.full_like(errors, np.nan), where=running > 0)


def _first(values: Floats, steps: int) -> Floats:
    """The first steps, filled with 0 if there are fewer."""
    return np.pad(values[:, :steps], ((0, 0), (0, max(0, steps - values.shape[1]))))
