"""The figures of a study of exposure bias with their intervals, and what every correction changed."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlpre.errors import RlpreError
from rlpre.measure import stats
from rlpre.measure.crossed import estimate
from rlpre.measure.exposure import (
    CONTEXTS,
    EE,
    ERROR,
    NLL,
    OO,
    REGRET,
    RUNNING,
    Bools,
    accumulated,
    mean_nll,
    rates,
    recovery,
    summary,
)
from rlpre.measure.stats import Floats, Interval
from rlpre.measure.verdict import Change, change
from rlpre.report.exposure.results import CLONE, Question, Runs, find_runs, load_runs

MEASURES = {"regret error": REGRET, "error": ERROR}
SUCCESS = ("EE", "OO", "gap")

Named = dict[str, list[Interval]]


@dataclass(frozen=True)
class Turns:
    """Success when learner and expert take turns once, after each number of ``steps``."""

    steps: tuple[int, ...]
    learner_first: list[Interval]
    expert_first: list[Interval]


@dataclass(frozen=True)
class Figures:
    """The figures of one arm on one level; a number that is not known is NaN.

    Attributes:
        seeds: (S,) those whose runs have finished.
        episodes: that every seed was tested on.
        dropped: those, of all seeds, that do not count: the expert failed, or lost its plan.
        horizon: the steps over which errors are added up.
        seconds: (S,) wall-clock of the runs.
        totals: by measure, "regret error" and "error", the figures of `rlpre.measure.exposure.summary`.
        curves: by measure and by context, the share of the running episodes that err at each step up to the horizon.
        accumulated: by measure AccErr(l) at each l, padded.
        nll: by context, the mean of a step in nats.
        recovery: by context, P(right at t + 1 | wrong at t).
        success: in EE (the expert's), in OO, and their gap.
        turns: the switch curves; None if they were not measured.
        change: against the baseline; None for clones, and without one.
    """

    seeds: tuple[int, ...]
    episodes: int
    dropped: int
    horizon: int
    seconds: Floats
    totals: dict[str, dict[str, Interval]]
    curves: dict[str, Named]
    accumulated: Named
    nll: dict[str, Interval]
    recovery: dict[str, Interval]
    success: dict[str, Interval]
    turns: Turns | None
    change: Change | None


Results = dict[str, dict[str, Figures]]  # level -> arm, in the question's order


def summarise(directory: Path, question: Question) -> Results:
    """The figures of every arm on every level of a study directory; the same input gives the same numbers.

    Raises:
        RlpreError: as `find_runs`, `load_runs` and `rlpre.measure.verdict.change`.
    """
    results: Results = {}
    for level, arms in find_runs(directory, question).items():
        horizon, results[level] = question.horizons[level], {}
        paths = arms.get(question.baseline)
        baseline = load_runs(level, question.baseline, paths, horizon) if paths else None
        for arm, paths in arms.items():
            runs = baseline if baseline and arm == question.baseline else load_runs(level, arm, paths, horizon)
            clone = baseline if question.arms[arm] != CLONE else None
            results[level][arm] = _figures(runs, clone)  # not the runs, which are large
    return results


def as_json(results: Results, question: Question) -> dict[str, Any]:
    """The content of ``results.json``; intervals are {value, low, high, n} at 95 %, null where not known."""
    levels = {level: {arm: _figures_json(of) for arm, of in arms.items()} for level, arms in results.items()}
    return {"exposure": asdict(question), "confidence": stats.CONFIDENCE, "levels": levels}


def _figures(runs: Runs, baseline: Runs | None) -> Figures:
    rng, sample = np.random.default_rng(0), runs.sample
    found = _estimate(sample.steps, sample.kept, _numbers, rng)
    paired = baseline is not None and set(sample.seeds) & set(baseline.sample.seeds)

    def of(prefix: str) -> Named:
        return {name.removeprefix(prefix): of for name, of in found.items() if name.startswith(prefix)}

    return Figures(
        seeds=sample.seeds,
        episodes=sample.kept.shape[1],
        dropped=int((~sample.kept).sum()),
        horizon=sample.steps.shape[-1],
        seconds=runs.seconds,
        totals={measure: _single(of(f"{measure}/total/")) for measure in MEASURES},
        curves={measure: of(f"{measure}/curve/") for measure in (*MEASURES, "nll")},
        accumulated={measure: found[f"{measure}/accumulated"] for measure in MEASURES},
        nll=_single(of("mean nll/")),
        recovery=_shares(of("recovery/")),
        success=_shares(_estimate(sample.success, sample.kept, _successes, rng)),
        turns=_turns(runs, rng),
        change=change(sample, baseline.sample, rng) if paired and baseline else None,
    )


def _numbers(means: Floats) -> dict[str, Floats]:
    """Everything that is said of one arm, by name (resamples, numbers)."""
    running, found = means[..., RUNNING, :], dict[str, Floats]()
    for measure, column in (*MEASURES.items(), ("nll", NLL)):
        shares = rates(means[..., column, :], running)
        found |= {f"{measure}/curve/{name}": shares[..., row, :] for row, name in enumerate(CONTEXTS)}
    for measure, column in MEASURES.items():
        found |= {f"{measure}/total/{name}": of[..., None] for name, of in summary(means, column).items()}
        found[f"{measure}/accumulated"] = accumulated(means[..., OO, column, :], means[..., EE, column, :])
    for name, of in (("mean nll", mean_nll(means)), ("recovery", recovery(means))):
        found |= {f"{name}/{context}": of[..., row, None] for row, context in enumerate(CONTEXTS)}
    return found


def _successes(means: Floats) -> dict[str, Floats]:
    ee, oo = means[..., :1], means[..., 1:]
    return dict(zip(SUCCESS, (ee, oo, ee - oo), strict=True))


def _turns(runs: Runs, rng: np.random.Generator) -> Turns | None:
    if not runs.switches:
        return None
    seeds, switches = list(runs.switches), list(runs.switches.values())
    steps = switches[0].steps
    if any(not np.array_equal(turns.steps, steps) for turns in switches):
        raise RlpreError(f"the seeds of {runs.arm} on {runs.level} switched at different steps: use the same for all")
    values = np.stack([np.concatenate([turns.learner_first, turns.expert_first]).T for turns in switches])
    found = estimate(values.astype(np.float64), runs.sample.of(seeds).kept, lambda means: means, rng)
    return Turns(tuple(steps.tolist()), found[: len(steps)], found[len(steps) :])


def _estimate(
    values: NDArray[np.floating[Any]],
    kept: Bools,
    statistic: Callable[[Floats], dict[str, Floats]],
    rng: np.random.Generator,
) -> Named:
    """`estimate` of numbers with names."""
    sizes = {name: of.shape[-1] for name, of in statistic(values[:1, 0].astype(np.float64)).items()}
    found = iter(estimate(values, kept, lambda means: np.concatenate(list(statistic(means).values()), axis=-1), rng))
    return {name: [next(found) for _ in range(size)] for name, size in sizes.items()}


def _single(named: Named) -> dict[str, Interval]:
    return {name: of for name, (of,) in named.items()}


def _shares(named: Named) -> dict[str, Interval]:
    return {name: of.within(-1 if name == "gap" else 0, 1) for name, of in _single(named).items()}


def _figures_json(figures: Figures) -> dict[str, Any]:
    content: dict[str, Any] = {field.name: getattr(figures, field.name) for field in fields(figures)}
    content |= {"seconds": figures.seconds.tolist(), "turns": figures.turns and vars(figures.turns)}
    if figures.change:
        content["change"] = {**vars(figures.change), "removed": figures.change.removed}
        content["verdict"] = figures.change.verdict
    return {name: _plain(of) for name, of in content.items()}


def _plain(tree: Any) -> Any:
    """What JSON can hold: intervals as dictionaries, null for a number that is not known."""
    if isinstance(tree, Interval):
        return _plain(asdict(tree))
    if isinstance(tree, dict):
        return {name: _plain(of) for name, of in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(of) for of in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
