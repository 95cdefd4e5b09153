"""Statistics of few runs: pure functions on arrays of scores ``(..., runs, tasks)``, after rliable [0, 1].

**Intervals.** rliable's percentile bootstrap is made for many tasks; with a handful of runs of one task it is far too
narrow: it cannot leave the range of the sample, so three runs cover the true mean at most 75 % of the time instead of
95 % (BCa: the same). Here the bootstrap, stratified by task, gives only the standard error; it is corrected by
sqrt(n / (n - 1)) and multiplied by a Student quantile. Measured coverage of the nominal 95 % interval of the mean, at
3, 5 and 10 runs (1500 repetitions):

=================  =============  =================
scores             this interval  percentile
=================  =============  =================
normal             .96 .95 .94    .74 .84 .90
log-normal (.5)    .92 .91 .92    .71 .81 .87
beta (.5, .3)      .87 .90 .94    .75 .83 .91
60 % solved        .73 .90 .94    .73 .87 .94
=================  =============  =================

Nothing helps when all runs agree by luck (the last row): equal runs give an interval of no width. Fewer than `FEWEST`
runs give none at all.

References:
    [0] Agarwal et al. 2021, Deep RL at the edge of the statistical precipice. https://arxiv.org/abs/2108.13264
    [1] https://github.com/google-research/rliable
    [2] Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
        method 5. https://doi.org/10.1002/sim.2324
    [3] Royston and Parmar 2013, Restricted mean survival time. https://doi.org/10.1186/1471-2288-13-152
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from rlpre.errors import RlpreError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Times = tuple[Floats, NDArray[np.bool_]]  # steps (runs,) and reached (runs,), as from `steps_to_threshold`

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 3

# (some baseline runs censored, some treated runs censored) -> what that makes of their ratio.
_BOUND = {(False, False): "", (True, False): ">=", (False, True): "<=", (True, True): "?"}


@dataclass(frozen=True)
class Interval:
    """An estimate from ``n`` runs (of each task); ``low`` and ``high`` are None if ``n`` < `FEWEST`."""

    value: float
    low: float | None
    high: float | None
    n: int

    def within(self, least: float, most: float) -> "Interval":
        """The part of it that the estimated number can lie in, at no cost of coverage."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=min(max(self.low, least), most), high=max(min(self.high, most), least))


@dataclass(frozen=True)
class StepsRatio:
    """How many times the steps of ``treated`` the ``baseline`` needs; above 1 the treatment saves steps.

    Attributes:
        ratio: of the mean steps up to the common budget.
        bound: what runs that never reached the threshold make of the ratio. "": all reached it. ">=": only baseline
            runs did not, so the true ratio is larger (``low`` holds, ``high`` does not). "<=": only treated runs.
            "?": runs of both, so that the ratio holds within the budget only.
        baseline_reached, treated_reached: runs that reached the threshold.
    """

    ratio: Interval
    bound: str
    baseline_reached: int
    treated_reached: int


def mean(scores: Floats) -> Floats:
    """The mean over runs and tasks: ``(..., runs, tasks)`` -> ``(...)``."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def geometric_mean(scores: Floats) -> Floats:
    """The geometric mean of positive scores over runs and tasks: ``(..., runs, tasks)`` -> ``(...)``."""
    return np.asarray(np.exp(mean(np.log(scores))))


def iqm(scores: Floats) -> Floats:
    """The interquartile mean over runs and tasks: ``(..., runs, tasks)`` -> ``(...)``.

    As in [1] the scores of all tasks are pooled and floor(N / 4) whole scores are cut at each end, without fractional
    weights: up to three scores it is the mean.
    """
    return np.asarray(scipy_stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1))


def bootstrap(scores: Floats, statistic: Statistic, rng: np.random.Generator, resamples: int = RESAMPLES) -> Floats:
    """The stratified bootstrap distribution of a statistic.

    Args:
        scores: (runs, tasks); runs are resampled with replacement within each task, independently of the other tasks.
        statistic: maps (resamples, runs, tasks) to (resamples,).
        rng: the source of the resampling; the same state gives the same numbers.
        resamples: how many.

    Returns:
        (resamples,) values of the statistic.
    """
    rows = rng.integers(len(scores), size=(resamples, *scores.shape))
    return statistic(np.take_along_axis(scores[None], rows, axis=1))


def interval(
    scores: Floats, rng: np.random.Generator, statistic: Statistic = iqm, logarithmic: bool = False
) -> Interval:
    """A statistic of ``scores`` (runs, tasks) with its `CONFIDENCE` interval (see the top of this file).

    Student's degrees of freedom are those of all strata together, tasks x (runs - 1). A ``logarithmic`` interval is
    symmetric on the logarithm of the statistic, which must be positive: for steps and times.
    """
    runs, tasks = scores.shape
    value = float(statistic(scores))
    if runs < FEWEST:
        return Interval(value, None, None, runs)
    quantile = student(tasks * (runs - 1))
    if logarithmic:
        factor = float(np.exp(quantile * _standard_error(scores, lambda x: np.log(statistic(x)), rng)))
        return Interval(value, value / factor, value * factor, runs)
    margin = float(quantile * _standard_error(scores, statistic, rng))
    return Interval(value, value - margin, value + margin, runs)


def probability_of_improvement(treated: Floats, baseline: Floats) -> Interval:
    """The probability that a run of ``treated`` scores above one of ``baseline``, averaged over tasks [0]; ties half.

    The interval is Newcombe's pseudo-score interval [2], which keeps its coverage when one arm wins every pair (3
    against 3 runs: 1 [0.50, 1]); a bootstrap would answer with an interval of no width.

    Args:
        treated: (runs, tasks).
        baseline: (runs of its own, tasks).
    """
    difference = treated[:, None] - baseline[None]
    value = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    runs, tasks = min(len(treated), len(baseline)), treated.shape[1]
    if runs < FEWEST:
        return Interval(value, None, None, runs)
    low = _pseudo_score_low(value, len(treated), len(baseline), tasks)
    high = 1 - _pseudo_score_low(1 - value, len(treated), len(baseline), tasks)
    return Interval(value, low, high, runs)


def area_under_curve(steps: NDArray[np.int64] | Floats, returns: Floats) -> Floats:
    """The mean height of a learning curve from its first to its last evaluation (trapezoid rule over the step range).

    Args:
        steps: (points,) environment steps, or another measure of experience, increasing.
        returns: (..., points).

    Returns:
        (...), in units of return; nothing is assumed about the curve before the first evaluation.

    Raises:
        RlpreError: if ``steps`` do not increase.
    """
    if np.any(np.diff(steps) <= 0):
        raise RlpreError(f"evaluation steps must increase, they are {steps.tolist()}: sort or deduplicate the curve")
    if len(steps) == 1:
        return returns[..., 0]
    return np.asarray(integrate.trapezoid(returns, steps, axis=-1) / (steps[-1] - steps[0]))


def steps_to_threshold(steps: NDArray[np.int64], returns: Floats, threshold: float) -> tuple[Floats, NDArray[np.bool_]]:
    """The step of the first evaluation whose return is at least ``threshold``; no interpolation between evaluations.

    Args:
        steps: (points,) environment steps, increasing.
        returns: (..., points).
        threshold: in units of return.

    Returns:
        steps (...) and reached (...); a curve that never reaches it is censored: its budget ``steps[-1]``, and False.
    """
    above = returns >= threshold
    reached = np.asarray(above.any(axis=-1))
    first = np.where(reached, above.argmax(axis=-1), len(steps) - 1)
    return steps[first].astype(np.float64), reached


def steps_ratio(baseline: Times, treated: Times, budget: float, rng: np.random.Generator) -> StepsRatio:
    """The ratio of restricted mean steps to a threshold [3], baseline / treated.

    The restricted mean, E[min(steps, budget)], is the area under the Kaplan-Meier curve up to the budget; with every
    censored run censored at the budget itself it is the plain mean of min(steps, budget). The interval is Welch's on
    the logarithms, with bootstrap standard errors: at three runs it covers .93-.97, a percentile bootstrap .70-.81.

    Args:
        baseline: steps and reached of its runs.
        treated: the same for the other arm.
        budget: environment steps that all runs had.
        rng: the source of the resampling.
    """
    return overall_ratio([(baseline, treated, budget)], rng)


def overall_ratio(tasks: Sequence[tuple[Times, Times, float]], rng: np.random.Generator) -> StepsRatio:
    """The geometric mean over tasks of `steps_ratio`: every task counts alike, whatever its budget.

    Args:
        tasks: for each its baseline, treated and budget, as for `steps_ratio`.
        rng: the source of the resampling.
    """
    pairs, reached = [], np.zeros(2, int)
    for *arms, budget in tasks:
        pairs.append([np.clip(steps, 1, budget)[:, None] for steps, _ in arms])
        reached += [int((ok & (steps <= budget)).sum()) for steps, ok in arms]
    runs = np.sum([[len(arm) for arm in pair] for pair in pairs], axis=0)
    bound = _BOUND[bool(reached[0] < runs[0]), bool(reached[1] < runs[1])]
    return StepsRatio(_ratio_of_means(pairs, rng), bound, int(reached[0]), int(reached[1]))


def performance_profile(scores: Floats, thresholds: Floats, rng: np.random.Generator) -> tuple[Interval, ...]:
    """The share of runs over all tasks that score above each threshold [0].

    Args:
        scores: (runs, tasks), of one range in all tasks.
        thresholds: (n,), in units of score.
        rng: the source of the resampling.
    """
    return tuple(interval((scores > threshold).astype(np.float64), rng, mean) for threshold in thresholds)


def _ratio_of_means(pairs: Sequence[Sequence[Floats]], rng: np.random.Generator) -> Interval:
    """The geometric mean over pairs of mean(first) / mean(second)."""
    value = float(np.exp(np.mean([np.log(mean(above) / mean(below)) for above, below in pairs])))
    arms = [arm for pair in pairs for arm in pair]
    runs = min(map(len, arms))
    if runs < FEWEST:
        return Interval(value, None, None, runs)
    variances = [(_standard_error(arm, lambda x: np.log(mean(x)), rng) / len(pairs)) ** 2 for arm in arms]
    parts = [variance**2 / (len(arm) - 1) for variance, arm in zip(variances, arms, strict=True)]
    freedom = sum(variances) ** 2 / sum(parts) if sum(parts) > 0 else runs - 1  # Welch and Satterthwaite
    factor = float(np.exp(student(freedom) * np.sqrt(sum(variances))))
    return Interval(value, value / factor, value * factor, runs)


def _standard_error(scores: Floats, statistic: Statistic, rng: np.random.Generator) -> float:
    # A resample of n spreads like n - 1 degrees of freedom.
    return float(bootstrap(scores, statistic, rng).std() * np.sqrt(len(scores) / (len(scores) - 1)))


def student(freedom: float | Floats) -> Floats:
    """How many standard errors a `CONFIDENCE` interval reaches to each side."""
    return np.asarray(scipy_stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))


def _pseudo_score_low(value: float, m: int, n: int, tasks: int) -> float:
    """The p < value that solves (value - p)^2 = z^2 V(p) / tasks."""
    if value == 0:
        return 0.0
    z = float(scipy_stats.norm.ppf(0.5 + CONFIDENCE / 2))
    pairs = (m + n) / 2 - 1

    def excess(p: float) -> float:
        variance = p * (1 - p) * (1 + pairs * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n * tasks)
        return (value - p) ** 2 - z**2 * variance

    # At value = 1 the score equation has a second root at p = 1 itself.
    return float(optimize.brentq(excess, 0.0, min(value, 1 - 1e-9)))
