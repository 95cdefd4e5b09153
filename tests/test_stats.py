"""Statistics against numbers worked out by hand, and their coverage on known distributions."""

import numpy as np
import pytest

from rlpre.errors import RlpreError
from rlpre.evaluation import stats

REPEATS = 400


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def reach(*steps: float, never: int = 0, budget: float = 100) -> tuple[np.ndarray, np.ndarray]:
    return np.array([*steps, *[budget] * never], dtype=np.float64), np.array([True] * len(steps) + [False] * never)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (column(0, 1, 2, 9), 1.5),  # one of four cut at each end
        (column(0, 1, 5), 2.0),  # nothing to cut: the mean
        (column(0, 1, 2, 3, 100), 2.0),  # floor(5 / 4) = 1
        (np.array([[0.0, 10.0], [1.0, 2.0]]), 1.5),  # tasks are pooled: (1 + 2) / 2
    ],
)
def test_iqm(scores, expected):
    assert stats.iqm(scores) == pytest.approx(expected)
    assert stats.iqm(np.stack([scores, scores + 1])) == pytest.approx([expected, expected + 1])


def test_bootstrap_resamples_runs_within_each_task():
    scores = np.array([[0.0, 100.0], [1.0, 200.0], [2.0, 300.0]])
    per_task = stats.bootstrap(scores, lambda x: x.transpose(2, 0, 1), np.random.default_rng(0))
    assert set(np.unique(per_task[0])) == {0, 1, 2}
    assert set(np.unique(per_task[1])) == {100, 200, 300}
    assert not np.array_equal(per_task[0] * 100 + 100, per_task[1])  # each task draws its own runs


def test_intervals_by_hand():
    # Mean 3, standard error 3 / sqrt(3) = 1.732, t(0.975, 2) = 4.303: 3 -+ 7.452.
    exact = stats.mean_interval([0, 3, 6])
    assert (exact.value, exact.low, exact.high, exact.n) == pytest.approx((3, -4.452, 10.452, 3), abs=1e-3)
    # The IQM of three runs is their mean; its bootstrap has some noise, but repeats itself.
    resampled = stats.iqm_interval([0, 3, 6])
    assert (resampled.low, resampled.high) == pytest.approx((exact.low, exact.high), abs=0.3)
    assert resampled == stats.iqm_interval([0, 3, 6])
    # Standard error of log mean = 10 / (100 sqrt(3)) = 0.0577 (delta method): factor exp(4.303 x 0.0577) = 1.282.
    logarithmic = stats.mean_interval([90, 100, 110], logarithmic=True)
    assert (logarithmic.low, logarithmic.high) == pytest.approx((100 / 1.282, 100 * 1.282), rel=1e-3)
    # Logarithms 0, 1, 2: mean 1, standard error 1 / sqrt(3): exp(1 -+ 2.484).
    geometric = stats.geometric_mean_interval(np.exp([0, 1, 2]))
    assert np.log([geometric.value, geometric.low, geometric.high]) == pytest.approx([1, -1.484, 3.484], abs=1e-3)


@pytest.mark.parametrize(
    ("ends", "inside"),
    [((0.2, 1.2), (0.2, 1.0)), ((-0.1, 0.5), (0.0, 0.5)), ((0.3, 0.4), (0.3, 0.4)), ((None, None), (None, None))],
)
def test_an_interval_of_a_share_ends_at_nought_and_one(ends, inside):
    cut = stats.Interval(0.4, *ends, 3).within(0, 1)
    assert (cut.value, cut.low, cut.high, cut.n) == (0.4, *inside, 3)


@pytest.mark.parametrize("runs", [1, 2])
def test_too_few_runs_give_no_interval(runs):
    scores = np.arange(runs, dtype=np.float64)[:, None] + 1
    for estimate in (
        stats.mean_interval(scores[:, 0]),
        stats.geometric_mean_interval(scores[:, 0]),
        stats.iqm_interval(scores),
        stats.probability_of_improvement(scores, column(1, 2, 3)),
        stats.steps_ratio([(reach(1, 2, 3), (scores[:, 0], np.ones(runs, bool)), 10)]).ratio,
    ):
        assert (estimate.low, estimate.high, estimate.n) == (None, None, runs)


def covered(truth: float, draw) -> float:
    intervals = [draw(np.random.default_rng(seed)) for seed in range(REPEATS)]
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


@pytest.mark.parametrize("runs", [3, 5])
def test_intervals_cover_the_truth_where_percentiles_do_not(runs):
    def percentile(rng):
        draws = stats.bootstrap(rng.normal(size=(runs, 1)), lambda x: x.mean((1, 2)), rng)
        return stats.Interval(0, *np.percentile(draws, [2.5, 97.5]), runs)

    def ratio(rng, spread=0.8):
        shape = 1 / spread**2
        slow, fast = rng.gamma(shape, 3 / shape, runs), rng.gamma(shape, 1 / shape, runs)
        return stats.steps_ratio([(reach(*(1e4 * slow)), reach(*(1e4 * fast)), 1e9)]).ratio

    def improvement(rng):  # normal scores a distance d apart: P = Phi(d / sqrt(2)), z(0.97) = 1.881
        return stats.probability_of_improvement(
            rng.normal(1.881 * np.sqrt(2), 1, (runs, 1)), rng.normal(size=(runs, 1))
        )

    assert covered(0, lambda rng: stats.mean_interval(rng.normal(size=runs))) == pytest.approx(0.95, abs=0.03)
    assert covered(0, percentile) < 0.90
    assert covered(3, ratio) > 0.92
    assert covered(0.97, improvement) > 0.92


def test_probability_of_improvement():
    # Pairs of (1, 3, 5) against (1, 2, 4): 0.5 + 0 + 0, 1 + 1 + 0, 1 + 1 + 1 = 5.5 of 9.
    chance = stats.probability_of_improvement(column(1, 3, 5), column(1, 2, 4))
    assert chance.value == pytest.approx(5.5 / 9)
    assert 0 < chance.low < chance.value < chance.high < 1
    swapped = stats.probability_of_improvement(column(1, 2, 4), column(1, 3, 5))
    assert (swapped.low, swapped.high) == pytest.approx((1 - chance.high, 1 - chance.low))
    mixed = np.hstack([column(4, 5, 6), column(1, 2, 3)])
    assert stats.probability_of_improvement(mixed, mixed[:, ::-1]).value == 0.5  # tasks are averaged
    # Three runs that win every pair stay unsure, p = 0.501: (1 - p)^2 = 0.249 and
    # 1.96^2 * p (1 - p) (1 + 2 (0.333 + 0.334)) / 9 = 0.249.
    sure = stats.probability_of_improvement(column(4, 5, 6), column(1, 2, 3))
    assert (sure.value, sure.high, sure.low) == (1, 1, pytest.approx(0.501, abs=1e-3))


def test_area_under_curve():
    steps = np.array([10, 20, 50])
    # (10 * (0 + 1) / 2 + 30 * (1 + 0.5) / 2) / 40 = (5 + 22.5) / 40
    assert stats.area_under_curve(steps, np.array([[0.0, 1.0, 0.5], [1, 1, 1]])) == pytest.approx([0.6875, 1])
    assert stats.area_under_curve(steps[:1], np.array([[0.3]])) == pytest.approx([0.3])
    with pytest.raises(RlpreError, match="must increase"):
        stats.area_under_curve(np.array([10, 10]), np.ones(2))


def test_steps_to_threshold():
    returns = np.array([[0.0, 0.8, 0.1], [0.0, 0.0, 0.9], [0.0, 0.7, 0.79], [1.0, 1.0, 1.0]])
    steps, reached = stats.steps_to_threshold(np.array([10, 20, 30]), returns, 0.8)
    assert steps.tolist() == [20, 30, 30, 10]
    assert reached.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("baseline", "treated", "value", "bound"),
    [
        (reach(30, 60, 90), reach(10, 20, 30), 3.0, ""),
        (reach(40, never=2), reach(10, 20, 30), 4.0, ">="),  # (40 + 100 + 100) / 3 = 80 against 20
        (reach(10, 20, 30), reach(40, never=2), 0.25, "<="),
        (reach(never=3), reach(20, 30, never=1), 2.0, "?"),
        (reach(30, 150, budget=200, never=1), reach(10, 20, 30), 230 / 60, ">="),  # up to the common budget
    ],
)
def test_steps_ratio_counts_censored_runs_at_the_budget(baseline, treated, value, bound):
    ratio = stats.steps_ratio([(baseline, treated, 100)])
    assert (ratio.ratio.value, ratio.bound) == (pytest.approx(value), bound)
    reached = [(ok & (steps <= 100)).sum() for steps, ok in (baseline, treated)]
    assert [ratio.baseline_reached, ratio.treated_reached] == reached


def test_steps_ratio_interval_is_welch_on_logarithms():
    # Delta method: standard error of log mean = sd / (mean sqrt(n)) = 0.1 / sqrt(3) for both; Welch: 4 degrees,
    # t = 2.776; margin exp(2.776 * 0.1 * sqrt(2 / 3)) = 1.2544.
    ratio = stats.steps_ratio([(reach(270, 300, 330, budget=900), reach(90, 100, 110), 900)]).ratio
    assert (ratio.low, ratio.high) == pytest.approx((3 / 1.2544, 3 * 1.2544), rel=1e-3)
    equal = stats.steps_ratio([(reach(never=3), reach(never=3), 100)])
    assert (equal.ratio, equal.bound, equal.known) == (stats.Interval(1, None, None, 3), "?", False)
    equal = stats.steps_ratio([(reach(50, 50, 50), reach(40, 40, 40), 100)])
    assert equal.ratio == stats.Interval(1.25, None, None, 3)  # what other runs would give is not known
    one = stats.steps_ratio([(reach(50, 50, 50), reach(20, 40, 60), 100)]).ratio
    assert one.low < one.value == 1.25 < one.high


def test_over_tasks_it_is_the_geometric_mean_over_tasks():
    # 300 / 100 and 80 / 60: sqrt(3 x 4/3) = 2, whatever the budgets.
    tasks = [(reach(300, 300, 300), reach(100, 100, 100), 900), (reach(70, 80, 90), reach(50, 60, 70), 100)]
    ratio = stats.steps_ratio(tasks)
    assert (ratio.bound, ratio.baseline_reached, ratio.treated_reached) == ("", 6, 6)
    # Of the second task alone: log standard errors 10/80 and 10/60 over sqrt(3), halved by the mean over two tasks;
    # Welch: 3.71 degrees of freedom, t = 2.86, so that the factor is exp(2.86 x 0.1203 / 2).
    assert (ratio.ratio.value, ratio.ratio.high) == pytest.approx((2, 2 * np.exp(2.86 * 0.1203 / 2)), rel=1e-2)
    solved, unsolved = (reach(30, 30, 30), reach(10, 10, 10), 100), (reach(never=3), reach(50, 50, 50), 100)
    assert stats.steps_ratio([solved, unsolved]).bound == ">="
    assert stats.steps_ratio([unsolved, (solved[1], reach(never=3), 100)]).bound == "?"


def test_holm_by_hand():
    # Sorted .01, .02, .03, .04: 4 x .01, 3 x .02, 2 x .03, then never less than the one before.
    assert stats.holm([0.04, 0.01, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([0.6, 0.7]).tolist() == [1, 1]


def test_seeds_to_decide_is_the_first_number_whose_interval_excludes_one() -> None:
    spread = 0.5  # of the logarithm of the ratio, one run

    def interval(n: int) -> stats.Interval:
        half = float(stats.student(2 * n - 2)) * spread / np.sqrt(n)
        return stats.Interval(1.3, 1.3 * np.exp(-half), 1.3 * np.exp(half), n)

    needed = stats.seeds_to_decide(interval(5))
    assert needed is not None
    assert interval(needed - 1).low < 1 < interval(needed).low
    slower = stats.Interval(1 / 1.3, *(1 / end for end in (interval(5).high, interval(5).low)), 5)
    assert stats.seeds_to_decide(slower) == needed
    assert stats.seeds_to_decide(stats.Interval(1.001, 0.8, 1.25, 5)) is None
    assert stats.seeds_to_decide(stats.Interval(1.3, None, None, 2)) is None
