"""Statistics of few runs: pure functions on arrays of scores, with intervals of 95 %.

Intervals of means are Student's t on the runs, of ratios Welch's t on logarithms. The interquartile mean (IQM) has no
such formula: a bootstrap, stratified by task, gives its standard error, and Student's quantile the width.

rliable's percentile bootstrap [0] is made for many tasks. With a handful of runs of one task it is too narrow, because
it cannot leave the range of the sample: three runs cover the true mean at most 75 % of the time (BCa: the same).
Measured coverage of the nominal 95 % interval of the mean, at 3, 5 and 10 runs (4000 repetitions):

=================  =============  =================
scores             this interval  percentile
=================  =============  =================
normal             .95 .95 .95    .74 .84 .90
log-normal (.5)    .92 .92 .93    .71 .81 .87
beta (.5, .3)      .86 .91 .94    .75 .83 .91
60 % solved        .71 .91 .94    .73 .87 .94
=================  =============  =================

The interval of a ratio covers .93 to .96 (gamma steps whose spread is .2 to 1 of their mean, 3 and 5 runs). Equal runs
give a mean an interval without width, also if they are equal by luck (the last row), and a ratio none. Fewer than
`FEWEST` runs give no interval.

Example:
    >>> ours, scratch = np.array([3e4, 4e4, 5e4]), np.array([6e4, 8e4, 1e5])  # steps to the threshold
    >>> everyone = np.ones(3, bool)  # no run missed the threshold
    >>> steps_ratio([((scratch, everyone), (ours, everyone), 1e5)]).ratio.value
    2.0

References:
    [0] Agarwal et al. 2021, Deep RL at the edge of the statistical precipice. https://arxiv.org/abs/2108.13264
    [1] Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2,
        method 5. https://doi.org/10.1002/sim.2324
    [2] Royston and Parmar 2013, Restricted mean survival time. https://doi.org/10.1186/1471-2288-13-152
    [3] Holm 1979, A simple sequentially rejective multiple test procedure. https://www.jstor.org/stable/4615733
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from rlpre.errors import RlpreError

Floats = NDArray[np.float64]
Times = tuple[Floats, NDArray[np.bool_]]  # steps (runs,) and reached (runs,), as from `steps_to_threshold`

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 3

# (some baseline runs are censored, some treated runs are censored) -> the bound on their ratio
_BOUND = {(False, False): "", (True, False): ">=", (False, True): "<=", (True, True): "?"}


@dataclass(frozen=True)
class Interval:
    """An estimate from ``n`` runs (of each task); ``low`` and ``high`` are None if there is no interval."""

    value: float
    low: float | None
    high: float | None
    n: int

    def within(self, least: float, most: float) -> "Interval":
        """The part of the interval between ``least`` and ``most``, for numbers such as shares."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=min(max(self.low, least), most), high=max(min(self.high, most), least))


@dataclass(frozen=True)
class StepsRatio:
    """Mean steps of a baseline / mean steps of a treatment, up to the common budget; above 1 the treatment saves steps.

    Attributes:
        ratio: without interval if there is no difference between the runs of either arm.
        bound: the effect of runs that never reached the threshold. "": all reached it. ">=": only baseline runs did
            not, so the true ratio is larger (``low`` holds, ``high`` does not). "<=": only treated runs did not. "?":
            runs of both did not, so the ratio holds within the budget only.
        baseline_reached, treated_reached: number of runs that reached the threshold.
    """

    ratio: Interval
    bound: str
    baseline_reached: int
    treated_reached: int

    @property
    def known(self) -> bool:
        """Whether any run reached the threshold."""
        return self.baseline_reached + self.treated_reached > 0


def mean_interval(values: ArrayLike, logarithmic: bool = False) -> Interval:
    """The mean of ``values`` (runs,) with Student's t interval.

    With ``logarithmic`` the interval is symmetric on the logarithm of the mean, which must be positive; for steps and
    times. Its standard error is that of the mean over the mean (delta method).
    """
    array = np.asarray(values, np.float64)
    value, runs = float(array.mean()), len(array)
    if runs < FEWEST:
        return Interval(value, None, None, runs)
    margin = float(student(runs - 1) * scipy_stats.sem(array))
    if logarithmic:
        factor = float(np.exp(margin / value))
        return Interval(value, value / factor, value * factor, runs)
    return Interval(value, value - margin, value + margin, runs)


def geometric_mean_interval(values: ArrayLike) -> Interval:
    """The geometric mean of positive ``values`` (runs,): Student's t interval of their logarithms, exponentiated."""
    logs = mean_interval(np.log(np.asarray(values, np.float64)))
    low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
    return Interval(float(np.exp(logs.value)), low, high, logs.n)


def iqm(scores: Floats) -> Floats:
    """The interquartile mean over runs and tasks, ``(..., runs, tasks)`` -> ``(...)``; of up to three scores the mean.

    As in rliable the scores of all tasks are pooled, and floor(N / 4) whole scores are cut at each end.
    """
    return np.asarray(scipy_stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1))


def iqm_interval(scores: ArrayLike, seed: int = 0) -> Interval:
    """The IQM of ``scores`` (runs,) or (runs, tasks) with its interval.

    The bootstrap gives the standard error, corrected by sqrt(n / (n - 1)) because a resample of n runs spreads like
    n - 1 degrees of freedom. Student's degrees of freedom are those of all tasks together, tasks x (runs - 1).
    """
    array = np.asarray(scores, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    runs, tasks = array.shape
    value = float(iqm(array))
    if runs < FEWEST:
        return Interval(value, None, None, runs)
    error = float(bootstrap(array, iqm, np.random.default_rng(seed)).std() * np.sqrt(runs / (runs - 1)))
    margin = float(student(tasks * (runs - 1))) * error
    return Interval(value, value - margin, value + margin, runs)


def bootstrap(scores: Floats, statistic: Callable[[Floats], Floats], rng: np.random.Generator) -> Floats:
    """`RESAMPLES` values of ``statistic``, which maps (resamples, runs, tasks) to (resamples,).

    The runs of ``scores`` (runs, tasks) are resampled with replacement within each task, independently of the others.
    """
    rows = rng.integers(len(scores), size=(RESAMPLES, *scores.shape))
    return statistic(np.take_along_axis(scores[None], rows, axis=1))


def probability_of_improvement(treated: Floats, baseline: Floats) -> Interval:
    """The probability that a run of ``treated`` scores above one of ``baseline`` [0], averaged over tasks; ties half.

    Newcombe's interval [1] keeps its coverage when one arm wins every pair (3 against 3 runs: 1 [0.50, 1]), where a
    bootstrap would give an interval without width. Both are (runs, tasks); the numbers of runs may differ.
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
    """The mean height (...) of learning curves from the first to the last evaluation, by the trapezoid rule.

    Args:
        steps: (points,) environment steps, or another measure of experience, increasing.
        returns: (..., points).

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


def steps_ratio(tasks: Sequence[tuple[Times, Times, float]]) -> StepsRatio:
    """The ratio of restricted mean steps to a threshold [2], baseline / treated; of several tasks the geometric mean.

    The restricted mean, E[min(steps, budget)], is the area under the Kaplan-Meier curve up to the budget. All censored
    runs are censored at the budget, so that it is the plain mean of min(steps, budget).

    Args:
        tasks: of each task (baseline, treated, budget): steps and reached of the runs of two arms, and the environment
            steps that all runs had. Every task counts alike, whatever its budget.
    """
    pairs, reached = [], np.zeros(2, int)
    for *arms, budget in tasks:
        pairs.append([np.clip(steps, 1, budget) for steps, _ in arms])
        reached += [int((ok & (steps <= budget)).sum()) for steps, ok in arms]
    runs = np.sum([[len(arm) for arm in pair] for pair in pairs], axis=0)
    bound = _BOUND[bool(reached[0] < runs[0]), bool(reached[1] < runs[1])]
    return StepsRatio(_ratio_of_means(pairs), bound, int(reached[0]), int(reached[1]))


def holm(p_values: ArrayLike) -> Floats:
    """P-values (n,) corrected for n tests [3]: comparing each with a level bounds the risk of any false call by it."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    scaled = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def student(freedom: ArrayLike) -> Floats:
    """The number of standard errors to each side of a `CONFIDENCE` interval, for degrees of freedom."""
    return np.asarray(scipy_stats.t.ppf(0.5 + CONFIDENCE / 2, freedom))


def seeds_to_decide(ratio: Interval, most: int = 1000) -> int | None:
    """About how many runs of each arm would make the interval of a ratio exclude 1, if the ratio stays as it is.

    Args:
        ratio: with its interval from ``n`` runs of each arm; the standard error shrinks with the root of the runs.
        most: numbers above it are not worth telling.

    Returns:
        The number, more than ``ratio.n``; None if the interval is unknown or ``most`` runs would not be enough.
    """
    if ratio.low is None or ratio.high is None or not ratio.low > 0:
        return None
    spread = np.log(ratio.high / ratio.low) / 2 / student(2 * ratio.n - 2) * np.sqrt(ratio.n)
    counts = np.arange(ratio.n + 1, most + 1)
    decided = student(2 * counts - 2) * spread / np.sqrt(counts) < abs(np.log(ratio.value))
    return int(counts[decided.argmax()]) if decided.any() else None


def _ratio_of_means(pairs: Sequence[Sequence[Floats]]) -> Interval:
    """The geometric mean over pairs of mean(first) / mean(second), with Welch's interval on its logarithm."""
    value = float(np.exp(np.mean([np.log(above.mean() / below.mean()) for above, below in pairs])))
    arms = [arm for pair in pairs for arm in pair]
    runs = min(map(len, arms))
    if runs < FEWEST or not any(np.ptp(arm) for arm in arms):
        return Interval(value, None, None, runs)
    variances = [float(scipy_stats.sem(arm) / arm.mean() / len(pairs)) ** 2 for arm in arms]
    parts = [variance**2 / (len(arm) - 1) for variance, arm in zip(variances, arms, strict=True)]
    freedom = sum(variances) ** 2 / sum(parts)  # Welch and Satterthwaite
    factor = float(np.exp(student(freedom) * np.sqrt(sum(variances))))
    return Interval(value, value / factor, value * factor, runs)


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
