"""Tidy rows of a study -> learning curves -> ratios with intervals.

`summarise` is the one place that turns runs into claims: for every task, arm and control one `Record`. Its flat form is
what ``summary.json`` lists.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlpre.compare.runner import DONE, ROWS, STUDY, Row, Run, finished_runs, read_rows, read_study
from rlpre.errors import RlpreError, lookup
from rlpre.evaluation import stats
from rlpre.evaluation.stats import Floats, Interval, StepsRatio, Times
from rlpre.utils import read_json, write_bytes

RETURN, SECONDS = "return", "seconds"  # metrics: the learning curve, the wall-clock of a run
ALL = "all tasks"


@dataclass(frozen=True)
class Metric:
    """What a study asks. It is part of the study's configuration (``study.json``), so that no result can choose it."""

    arms: Mapping[str, int]  # every arm, in reading order, and how many offline frames its encoder was pretrained on
    answer: str  # the arm that the report's answer is about; the best of several would be optimistic
    baseline: str = "scratch"  # the arm that all others are compared with
    threshold: float = 0.8  # the return to reach
    controls: Sequence[str] = ()  # further arms that the others are compared with, such as frozen fresh weights
    oracle: str = ""  # the arm that learns from the true state; empty: none
    labels: Mapping[str, int] = field(default_factory=dict)  # of arms with a clone: the actions that it learns from
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by task, instead of the one, which stands beside
    unit: str = "environment steps"  # of the curves; or "labels", which clones were given

    def __post_init__(self) -> None:
        for arm in (self.answer, self.baseline, *self.controls, *([self.oracle] if self.oracle else [])):
            lookup("arm", arm, self.arms)

    @property
    def cause(self) -> str:
        """What saved steps, or did not, as the subject of a sentence."""
        pretraining = self.baseline == "scratch" and self.arms[self.answer] > 0 and self.answer not in self.labels
        return "pretraining" if pretraining else f"the arm '{self.answer}'"

    def aim(self, task: str = ALL) -> float:
        """The return to reach on a task."""
        return self.thresholds.get(task, self.threshold)

    def goal(self, task: str = ALL) -> str:
        """The same in words; over all tasks they may differ."""
        return "each task's threshold" if task == ALL and self.thresholds else f"{self.aim(task):.3g}"

    def compared_with(self, arm: str) -> list[str]:
        """The arms that an arm is compared with; controls are compared with the baseline only."""
        if arm == self.baseline:
            return []
        return [self.baseline] if arm in self.controls else list(dict.fromkeys((self.baseline, *self.controls)))


@dataclass(frozen=True)
class Curves:
    """The curves of one arm on one task."""

    seeds: tuple[int, ...]  # (runs,)
    steps: NDArray[np.int64]  # (points,) environment steps, increasing
    values: Floats  # (runs, points) what was measured there, such as the mean return of an evaluation

    @property
    def areas(self) -> Floats:
        """(runs,) mean heights of the curves."""
        return stats.area_under_curve(self.steps, self.values)

    @cached_property
    def points(self) -> list[Interval]:
        """The IQM over runs at every step."""
        return [stats.iqm_interval(point) for point in self.values.T]

    def only(self, seeds: Sequence[int]) -> "Curves":
        """The curves of some seeds."""
        return replace(self, seeds=tuple(seeds), values=self.values[[self.seeds.index(seed) for seed in seeds]])

    def times(self, threshold: float) -> Times:
        """Steps to the threshold of each run, and whether it reached it.

        A run that is there before its first step counts the steps to the first evaluation after it, the resolution of
        the measure: so every ratio is finite, and rather too small.
        """
        steps, reached = stats.steps_to_threshold(self.steps, self.values, threshold)
        return np.maximum(steps, self.steps[self.steps > 0][0]), reached


Tasks = dict[str, dict[str, Curves]]  # task -> arm


@dataclass(frozen=True)
class Record:
    """What one arm reached on one task, or on `ALL`, and how it compares with one other arm."""

    task: str
    arm: str
    over: str | None  # the arm it is compared with; None if there is none, as for the baseline
    n: int  # runs; over all tasks the seeds that have finished all of them
    reached: int  # runs that reached the threshold
    steps: Interval | None  # mean steps to it; runs that never reached it count as the budget. None over all tasks
    start: Interval | None  # IQM of the return before the first step; None if it was not evaluated
    final: Interval  # IQM of the last evaluation's return
    area: Interval  # IQM of the mean height of the learning curve
    ratio: StepsRatio | None  # steps of `over` / steps of `arm`; over all tasks the geometric mean of the tasks' ratios
    better: Interval | None  # the probability that a run of `arm` has a larger area than one of `over`

    def flat(self) -> dict[str, Any]:
        """Numbers by name, for JSON and data frames: None for what is not known, an open end, or no number."""
        bound = self.ratio.bound if self.ratio else None
        ratio = self.ratio.ratio if self.ratio and self.ratio.known else Interval(math.nan, None, None, 0)
        numbers = {
            "task": self.task,
            "arm": self.arm,
            "over": self.over,
            "ratio": None if math.isnan(ratio.value) else ratio.value,
            "low": 0.0 if bound == "<=" and ratio.low is not None else ratio.low,
            "high": None if bound == ">=" else ratio.high,
            "bound": bound,
            "reached": self.reached,
            "n": self.n,
        }
        others = {
            "steps_to_threshold": self.steps,
            "final": self.final,
            "area": self.area,
            "p_better": self.better,
        }
        others |= {"start": self.start} if self.start else {}  # studies without clones do not measure it
        for name, found in others.items():
            ends = (found.value, found.low, found.high) if found else (None, None, None)
            numbers |= zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
        return numbers


@dataclass(frozen=True)
class Results:
    """Everything that is known of a study."""

    metric: Metric
    rows: Sequence[Row]  # what its finished runs measured
    tasks: Tasks  # the learning curves, arms in the metric's order
    records: Sequence[Record]  # see `summarise`

    def record(self, task: str, arm: str, over: str | None) -> Record | None:
        """One record; None if an arm has no finished run."""
        wanted = (task, arm, over)
        return next((each for each in self.records if (each.task, each.arm, each.over) == wanted), None)

    def arms(self, task: str) -> list[Record]:
        """One record of every arm on a task: that over the baseline, if there is one."""
        return list({record.arm: record for record in reversed(self.records) if record.task == task}.values())[::-1]

    def best_control(self, task: str) -> str | None:
        """The control that needs the fewest steps on a task, or else has the largest area; None if none has run.

        It is the harder one to beat: fresh weights must not lose by the way in which they are read.
        """
        records = [self.record(task, arm, self.metric.baseline) for arm in self.metric.controls]
        found = [record for record in records if record]

        def score(record: Record) -> tuple[float, float]:
            return (record.ratio.ratio.value if record.ratio and record.ratio.known else 0.0), record.area.value

        return max(found, key=score).arm if found else None

    def minutes(self, task: str, arm: str) -> str:
        """The mean wall-clock of a run; "-" if it is not known."""
        seconds = [row.value for row in self.rows if (row.task, row.arm, row.metric) == (task, arm, SECONDS)]
        return f"{np.mean(seconds) / 60:.1f}" if seconds else "-"


def read_results(directory: Path) -> Results:
    """Reads and compares the finished runs of a study whose ``study.json`` holds a `Metric` under "metric".

    Args:
        directory: of the study. Instead of runs it may hold the ``rows.json`` of a published study.

    Raises:
        RlpreError: if there is no study, no metric or no finished run, a file is damaged, or runs do not fit together.
    """
    configuration = read_study(directory)
    if "metric" not in configuration:
        raise RlpreError(f"{directory / STUDY} has no metric: put one in the configuration before the study runs")
    metric = Metric(**configuration["metric"])
    if runs := finished_runs(directory):
        rows, study = read_rows(directory), str(configuration.get("study", directory.name))
        for run, path in runs.items():
            if (seconds := read_json(path / DONE)["seconds"]) is not None:
                rows.append(Row(study, run.task, run.arm, run.seed, SECONDS, float(seconds)))
    elif (directory / ROWS).exists():
        rows = load_rows(directory / ROWS)
    else:
        raise RlpreError(f"{directory} holds no finished run: run the study first")
    measured = curves(rows)
    for arm in (arm for arms in measured.values() for arm in arms):
        lookup("arm", arm, metric.arms)
    tasks = {task: {arm: arms[arm] for arm in metric.arms if arm in arms} for task, arms in measured.items()}
    if not tasks:
        raise RlpreError(f"no run of {directory} measured {RETURN!r} by steps: a run returns its learning curve")
    return Results(metric, rows, tasks, summarise(tasks, metric))


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes rows as JSON, one line per run: a value or a list of (step, value) per metric, with 9 digits."""
    runs: dict[Run, dict[str, Any]] = {}
    for row in rows:
        measured, value = runs.setdefault(Run(row.task, row.arm, row.seed), {}), float(f"{row.value:.9g}")
        if row.step is None:
            measured[row.metric] = value
        else:
            measured.setdefault(row.metric, []).append((row.step, value))
    lines = [json.dumps({**asdict(run), "measured": measured}) for run, measured in sorted(runs.items())]
    study, body = json.dumps(rows[0].study), ",\n".join(lines)
    write_bytes(path, f'{{"study": {study}, "runs": [\n{body}\n]}}\n'.encode())


def load_rows(path: Path) -> list[Row]:
    """Reads the rows that `save_rows` wrote.

    Raises:
        RlpreError: if the file is missing or damaged.
    """
    content, rows = read_json(path), []
    try:
        for run in content["runs"]:
            for metric, values in run["measured"].items():
                points = values if isinstance(values, list) else [(None, values)]
                named = (content["study"], run["task"], run["arm"], run["seed"], metric)
                rows += [Row(*named, value, step) for step, value in points]
    except (KeyError, TypeError, ValueError) as error:
        raise RlpreError(f"{path} is damaged ({error}): restore it") from error
    return rows


def curves(rows: Iterable[Row], metric: str = RETURN) -> Tasks:
    """The curves of a metric, by task and arm.

    Raises:
        RlpreError: if a value is not finite, or two runs of one task were not measured at the same steps.
    """
    runs: dict[tuple[str, str, int], list[tuple[int, float]]] = {}
    for row in rows:
        if row.metric == metric and row.step is not None:
            runs.setdefault((row.task, row.arm, row.seed), []).append((row.step, row.value))
    first: dict[str, tuple[str, NDArray[np.int64]]] = {}
    grouped: dict[str, dict[str, dict[int, Floats]]] = {}
    for (task, arm, seed), points in runs.items():
        name = f"{task}/{arm}/seed-{seed}"
        steps = np.array([step for step, _ in points], np.int64)
        values = np.array([value for _, value in points], np.float64)
        if not np.isfinite(values).all():
            raise RlpreError(f"{name}: {metric} is not finite at step {steps[~np.isfinite(values)][0]}: check the run")
        reference, expected = first.setdefault(task, (name, steps))
        if not np.array_equal(steps, expected):
            raise RlpreError(
                f"{name} was measured at {len(steps)} points up to step {steps[-1]}, {reference} at {len(expected)} up "
                f"to {expected[-1]}: give all runs of {task} the same evaluation steps"
            )
        grouped.setdefault(task, {}).setdefault(arm, {})[seed] = values

    def stack(task: str, values: dict[int, Floats]) -> Curves:
        return Curves(tuple(values), first[task][1], np.stack(list(values.values())))

    return {task: {arm: stack(task, values) for arm, values in arms.items()} for task, arms in grouped.items()}


def summarise(tasks: Tasks, metric: Metric) -> list[Record]:
    """Compares every arm with the baseline and the controls, on every task; the same curves give the same records.

    With several tasks, the arms that have finished a seed on every task are compared over `ALL` tasks too.
    """
    records = []
    for task, arms in tasks.items():
        records += _compare([task], {arm: [curve] for arm, curve in arms.items()}, metric)
    if len(tasks) > 1:
        everywhere = [arm for arm in metric.arms if all(arm in arms for arms in tasks.values())]
        records += _compare(list(tasks), {arm: [arms[arm] for arms in tasks.values()] for arm in everywhere}, metric)
    return records


def _compare(tasks: list[str], arms: dict[str, list[Curves]], metric: Metric) -> list[Record]:
    """The records of arms, each with its curves on one or more tasks; scores are those of seeds that ran on all."""
    seeds = {arm: sorted(set.intersection(*(set(curve.seeds) for curve in every))) for arm, every in arms.items()}
    common = {arm: [curve.only(seeds[arm]) for curve in every] for arm, every in arms.items() if seeds[arm]}
    areas = {arm: np.stack([curve.areas for curve in every], axis=1) for arm, every in common.items()}
    task, aims = tasks[0] if len(tasks) == 1 else ALL, [metric.aim(task) for task in tasks]
    times = {arm: [curve.times(aim) for curve, aim in zip(arms[arm], aims, strict=True)] for arm in common}
    records = []
    for arm, every in common.items():
        ends = [stats.iqm_interval(np.stack([curve.values[:, end] for curve in every], axis=1)) for end in (0, -1)]
        start, final = ends[0] if all(curve.steps[0] == 0 for curve in every) else None, ends[1]
        area = stats.iqm_interval(areas[arm])
        steps = None if task == ALL else stats.mean_interval(np.maximum(times[arm][0][0], 1), logarithmic=True)
        reached = int(sum(reached.sum() for _, reached in times[arm]))
        overs: list[str | None] = [over for over in metric.compared_with(arm) if over in common]
        for over in overs or [None]:
            ratio = better = None
            if over is not None:
                budgets = [float(curve.steps[-1]) for curve in every]
                ratio = stats.steps_ratio(list(zip(times[over], times[arm], budgets, strict=True)))
                better = stats.probability_of_improvement(areas[arm], areas[over])
            records.append(Record(task, arm, over, len(seeds[arm]), reached, steps, start, final, area, ratio, better))
    return records
