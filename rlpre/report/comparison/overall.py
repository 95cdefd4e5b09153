"""What a study found over all its tasks."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlpre.measure import stats
from rlpre.measure.stats import Floats, Interval, StepsRatio
from rlpre.report.comparison.results import Figures, Metric, Results, times


@dataclass(frozen=True)
class Overall:
    """The figures of one arm over all tasks, which count alike.

    Attributes:
        seeds: those that have finished every task; the scores are theirs.
        finals: (runs, tasks) return of the last evaluation.
        areas: (runs, tasks) mean height of the learning curve.
        final: IQM of ``finals``.
        area: IQM of ``areas``.
        ratio: geometric mean of the tasks' ratios, of all runs; None for the baseline, or without one.
        improvement: as in `Figures`, averaged over tasks; None as above.
    """

    seeds: tuple[int, ...]
    finals: Floats
    areas: Floats
    final: Interval
    area: Interval
    ratio: StepsRatio | None
    improvement: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Its part of ``results.json``."""
        return {
            "seeds": list(self.seeds),
            "final_return": asdict(self.final),
            "area_under_curve": asdict(self.area),
            "steps_ratio": self.ratio and asdict(self.ratio),
            "probability_of_improvement": self.improvement and asdict(self.improvement),
        }


def summarise_overall(results: Results, metric: Metric) -> dict[str, Overall]:
    """The figures of the arms that have finished a seed on every task, in the metric's order."""
    tasks = {arm: [arms[arm] for arms in results.values() if arm in arms] for arm in metric.arms}
    seeds = {arm: _common_seeds(of) for arm, of in tasks.items() if len(of) == len(results)}
    baseline = tasks[metric.baseline] if seeds.get(metric.baseline) else None
    return {
        arm: _overall(tasks[arm], None if arm == metric.baseline else baseline, common)
        for arm, common in seeds.items()
        if common
    }


def _overall(tasks: list[Figures], baseline: list[Figures] | None, seeds: tuple[int, ...]) -> Overall:
    rng = np.random.default_rng(0)
    finals, areas = _scores(tasks, seeds)
    ratio = improvement = None
    if baseline:
        pairs = zip(baseline, tasks, strict=True)
        ratio = stats.overall_ratio([(times(a), times(b), float(b.runs.steps[-1])) for a, b in pairs], rng)
        improvement = stats.probability_of_improvement(areas, _scores(baseline, _common_seeds(baseline))[1])
    of_finals, of_areas = stats.interval(finals, rng), stats.interval(areas, rng)
    return Overall(seeds, finals, areas, of_finals, of_areas, ratio, improvement)


def _common_seeds(tasks: list[Figures]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*(set(figures.runs.seeds) for figures in tasks))))


def _scores(tasks: list[Figures], seeds: tuple[int, ...]) -> tuple[Floats, Floats]:
    rows = [[figures.runs.seeds.index(seed) for seed in seeds] for figures in tasks]
    finals = [figures.runs.finals[row] for figures, row in zip(tasks, rows, strict=True)]
    areas = [figures.runs.areas[row] for figures, row in zip(tasks, rows, strict=True)]
    return np.stack(finals, axis=1), np.stack(areas, axis=1)
