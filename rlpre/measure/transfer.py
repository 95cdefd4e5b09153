"""Does a pretraining help a task or harm it, and would it have been better to stop it earlier?

Agents start from fresh weights ("scratch") or from one of the checkpoints that a pretraining passed, the rungs of a
ladder. The best rung is chosen by agents of some seeds and scored again on those of others: the best of several scores
is flattered, the second look is not. Three differences are asked on each task, pair by pair of seed:

- *best*: the chosen rung against scratch;
- *last*: the last rung, pretraining to its end, against scratch; below 0 this is negative transfer;
- *early*: the chosen rung against the last; above 0 it helps to stop early.

Scratch asks whether to pretrain at all: frozen features of any source can lose to it. Whether a *source* is wrong is
asked of its last rung against that of another source, the right one.

Each is tested in both directions, one-sided at `LEVEL`, with Holm's correction over the tasks [0]. The standard error
is that of the bootstrap over pairs and the quantiles are Student's, as in `rlpre.measure.stats`, where it is said why
percentiles of few pairs are far too narrow. Measured share of families of 4 tasks without any effect of which one or
more is called positive, nominal .05, at 3, 5 and 10 pairs (1000 repetitions):

==================================  ===========
differences                         false calls
==================================  ===========
normal                              .05 .05 .04
normal, half of it common to tasks  .03 .05 .05
uniform                             .08 .07 .06
log-normal (.5), gains far out      .02 .01 .01
log-normal (.5), losses far out     .15 .16 .18
==================================  ===========

In the last row gains are small and common, losses large and rare, so that few pairs meet none.

References:
    [0] Holm 1979, A simple sequentially rejective multiple test procedure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlpre.errors import RlpreError
from rlpre.measure import stats
from rlpre.measure.stats import FEWEST, Floats, Interval

LEVEL = 0.05  # of a false call over all tasks, in each direction
POSITIVE, NEGATIVE, UNDECIDED, NONE = "positive", "negative", "undecided", "no verdict"


@dataclass(frozen=True)
class Ladder:
    """Scores on one task; higher is better, and the k-th of every array belong to the same seed.

    Attributes:
        scratch: (seeds,) of agents that start from fresh weights.
        rungs: steps of pretraining -> (seeds,) of agents that start from that checkpoint; 0: from the weights that
            pretraining starts from, a control that is never chosen.
    """

    scratch: Floats
    rungs: Mapping[int, Floats]

    @property
    def last(self) -> int:
        """The rung at the end of pretraining."""
        return max(self.rungs)

    @property
    def best(self) -> int:
        """The rung with the highest mean, the earliest of equals; step 0 is none."""
        return max(sorted(filter(None, self.rungs)), key=lambda step: float(self.rungs[step].mean()))

    @property
    def advised(self) -> int | None:
        """Where these seeds would start: at the best rung, or from scratch (None) if that is as good."""
        return self.best if self.rungs[self.best].mean() > self.scratch.mean() else None


@dataclass(frozen=True)
class Contrast:
    """A difference of paired scores.

    Attributes:
        gain: its mean over seeds, in units of score.
        above: the probability of such a gain or a larger one if there is none, corrected over tasks; None below
            `FEWEST` seeds.
        below: the same of such a gain or a smaller one.
    """

    gain: Interval
    above: float | None
    below: float | None

    @property
    def verdict(self) -> str:
        """See the top of this file; "no verdict" from fewer than `FEWEST` seeds."""
        if self.above is None or self.below is None:
            return NONE
        if min(self.above, self.below) > LEVEL:
            return UNDECIDED
        return POSITIVE if self.above < self.below else NEGATIVE


@dataclass(frozen=True)
class Contrasts:
    """The three differences, see the top of this file; `early` is 0 if the chosen rung is the last."""

    best: Contrast
    last: Contrast
    early: Contrast


@dataclass(frozen=True)
class Outcome:
    """What a pretraining did for one task.

    Attributes:
        chosen: the best rung by validation.
        advised: the same with scratch among the candidates: None if validation prefers it.
        last: the last rung.
        contrasts: on the test.
    """

    chosen: int
    advised: int | None
    last: int
    contrasts: Contrasts


@dataclass(frozen=True)
class Transfer:
    """What a pretraining did.

    Attributes:
        tasks: its outcome on each.
        overall: the differences of the mean score over the tasks.
    """

    tasks: dict[str, Outcome]
    overall: Contrasts


def transfer(validation: Mapping[str, Ladder], test: Mapping[str, Ladder], rng: np.random.Generator) -> Transfer:
    """Judges one pretraining on every task.

    Args:
        validation: task -> scores of the seeds that choose, on every rung.
        test: task -> scores of other seeds, the same in all tasks, at least on the chosen rung and the last.
        rng: the source of the resampling.

    Returns:
        Fewer than `FEWEST` test seeds give no verdict.

    Raises:
        RlpreError: if a score is not finite, a task or a rung is missing, or scores cannot be paired.
    """
    if not validation or validation.keys() != test.keys():
        raise RlpreError(f"validation has {list(validation)}, test {list(test)}: score the same tasks in both")
    seeds = len(next(iter(test.values())).scratch)
    for task, ladder in validation.items():
        _check(f"validation of {task}", ladder, len(ladder.scratch))
        _check(f"test of {task}", test[task], seeds)
        if missing := {ladder.best, ladder.last} - set(test[task].rungs):
            raise RlpreError(f"the test of {task} lacks step {min(missing)}: score the chosen rung and the last one")
    scratch = np.stack([test[task].scratch for task in validation], axis=1)
    best = np.stack([test[task].rungs[ladder.best] for task, ladder in validation.items()], axis=1)
    last = np.stack([test[task].rungs[ladder.last] for task, ladder in validation.items()], axis=1)
    differences = np.stack([best - scratch, last - scratch, best - last])
    each = zip(*(contrasts(of, rng) for of in differences), strict=True)
    (overall,) = zip(*(contrasts(of.mean(axis=1, keepdims=True), rng) for of in differences), strict=True)
    outcomes = {
        task: Outcome(ladder.best, ladder.advised, ladder.last, Contrasts(*found))
        for (task, ladder), found in zip(validation.items(), each, strict=True)
    }
    return Transfer(outcomes, Contrasts(*overall))


def against(
    first: Mapping[str, Ladder], other: Mapping[str, Ladder], rng: np.random.Generator
) -> tuple[dict[str, Contrast], Contrast]:
    """What pretraining to its end on another source gains over the first, pair by pair of seed.

    Args:
        first: task -> scores on the test of the source that is thought to be right.
        other: the same of another.
        rng: the source of the resampling.

    Returns:
        By task, corrected over the tasks, and of the mean score over the tasks.

    Raises:
        RlpreError: if the tasks or the numbers of seeds differ.
    """
    last = [[of[task].rungs[of[task].last] for task in first if task in of] for of in (first, other)]
    if first.keys() != other.keys() or len({len(scores) for of in last for scores in of}) != 1:
        raise RlpreError("the sources were not tested on the same tasks with the same seeds: pairs need both")
    differences = np.stack(last[1], axis=1) - np.stack(last[0], axis=1)
    (overall,) = contrasts(differences.mean(axis=1, keepdims=True), rng)
    return dict(zip(first, contrasts(differences, rng), strict=True)), overall


def contrasts(differences: Floats, rng: np.random.Generator) -> tuple[Contrast, ...]:
    """Tests every column of differences (seeds, tasks) of paired scores in both directions, corrected over tasks.

    A column of equal differences has no width: 0 is undecided, anything else is called.
    """
    gains = [stats.interval(column[:, None], rng, stats.mean) for column in differences.T]
    if len(differences) < FEWEST:
        return tuple(Contrast(gain, None, None) for gain in gains)
    sides = [holm(one_sided(sign * differences, rng)).tolist() for sign in (1, -1)]
    return tuple(Contrast(gain, *found) for gain, *found in zip(gains, *sides, strict=True))


def one_sided(differences: Floats, rng: np.random.Generator) -> Floats:
    """(tasks,) probabilities of such means of differences (seeds, tasks), or larger ones, if the true means are 0."""
    from scipy.stats import t as student

    seeds, found = len(differences), differences.mean(axis=0)
    spread = stats.bootstrap(differences, lambda drawn: drawn.mean(axis=-2), rng).std(axis=0)
    error = spread * np.sqrt(seeds / (seeds - 1))  # a resample of n spreads like n - 1 degrees of freedom
    score = np.divide(found, error, out=np.where(found > 0, np.inf, -np.inf), where=error > 0)
    return np.asarray(student.sf(score, seeds - 1))


def holm(probabilities: Floats) -> Floats:
    """Probabilities (n,) corrected so that comparing each with a level bounds the risk of any false call by it [0]."""
    order = np.argsort(probabilities)
    corrected = np.empty_like(probabilities)
    scaled = probabilities[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def _check(where: str, ladder: Ladder, seeds: int) -> None:
    if not any(ladder.rungs):
        raise RlpreError(f"the {where} has no rung above step 0: keep at least one checkpoint of the pretraining")
    for name, scores in {
        "scratch": ladder.scratch,
        **{f"step {step}": of for step, of in ladder.rungs.items()},
    }.items():
        if not seeds or len(scores) != seeds:
            raise RlpreError(f"the {where} has {len(scores)} scores of {name}, expected {seeds}: pairs need all seeds")
        if not np.isfinite(scores).all():
            raise RlpreError(f"the {where} has scores of {name} that are not finite: look at those runs")
