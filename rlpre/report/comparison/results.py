"""What a study found: every run's curve, and the figures with their intervals."""

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlpre.errors import RlpreError, lookup
from rlpre.files import read_json
from rlpre.measure import stats
from rlpre.measure.stats import Floats, Interval, StepsRatio, Times
from rlpre.study import DONE, STUDY, Cell, finished_runs

EVALUATIONS = "evaluations.npz"


@dataclass(frozen=True)
class Metric:
    """What a study asks. It stands under "metric" in the study's configuration, so that no result can choose it.

    Attributes:
        arms: every arm, in reading order, and the offline frames that its encoder was pretrained on (0: none).
        answer: the arm that "how many steps did pretraining save?" is about; the best of several would be flattered.
        baseline: the arm that the others are compared with.
        threshold: the return to reach.
    """

    arms: Mapping[str, int]
    answer: str
    baseline: str = "scratch"
    threshold: float = 0.8

    def __post_init__(self) -> None:
        for arm in (self.answer, self.baseline):
            lookup("arm", arm, self.arms)

    @property
    def cause(self) -> str:
        """What saved steps, or did not: from scratch to another arm it is pretraining."""
        return "pretraining" if self.baseline == "scratch" else self.answer


@dataclass(frozen=True)
class Runs:
    """The finished runs of one arm in one environment.

    Attributes:
        seeds: (runs,).
        steps: (points,) environment steps of the evaluations.
        returns: (runs, points) mean return over the episodes of an evaluation.
        seconds: (runs,) wall-clock.
    """

    environment: str
    arm: str
    seeds: tuple[int, ...]
    steps: NDArray[np.int64]
    returns: Floats
    seconds: Floats

    @property
    def finals(self) -> Floats:
        """(runs,) return of the last evaluation."""
        return self.returns[:, -1]

    @property
    def areas(self) -> Floats:
        """(runs,) mean height of the learning curve."""
        return stats.area_under_curve(self.steps, self.returns)


@dataclass(frozen=True)
class Figures:
    """The figures of one arm in one environment.

    Attributes:
        curve: IQM over runs at each evaluation.
        final: IQM of the last evaluation's return.
        area: IQM of the mean height of the curve.
        reached_at: steps to the threshold of each run, None if it never reached it.
        mean_steps: mean steps to the threshold; runs that never reached it count as the budget.
        ratio: steps of the baseline / steps of this arm; None for the baseline, or without one.
        improvement: the probability that a run of this arm has a larger area than one of the baseline; None as above.
        offline_frames: that the encoder was pretrained on.
    """

    runs: Runs
    curve: tuple[Interval, ...]
    final: Interval
    area: Interval
    reached_at: tuple[int | None, ...]
    mean_steps: Interval
    ratio: StepsRatio | None
    improvement: Interval | None
    offline_frames: int


Results = dict[str, dict[str, Figures]]  # environment -> arm, in the metric's order


def load_metric(directory: Path) -> Metric:
    """The metric of a study directory.

    Raises:
        RlpreError: if there is none, or it names an arm that it does not list.
    """
    configuration = read_json(directory / STUDY)
    if "metric" not in configuration:
        raise RlpreError(f"{directory / STUDY} has no metric: put one in the configuration before the study runs")
    return Metric(**configuration["metric"])


def load_runs(directory: Path) -> list[Runs]:
    """The finished runs of a study directory, by environment and arm.

    Raises:
        RlpreError: if none has finished, an evaluation file is missing or damaged, or two runs of one environment were
            not evaluated at the same steps.
    """
    groups: dict[tuple[str, str], dict[Cell, Path]] = {}
    for cell, run in finished_runs(directory).items():
        groups.setdefault((cell.environment, cell.arm), {})[cell] = run
    if not groups:
        raise RlpreError(f"{directory} holds no finished run: run the study first")
    first: dict[str, tuple[Path, NDArray[np.int64]]] = {}
    loaded = []
    for (environment, arm), paths in groups.items():
        curves = []
        for run in paths.values():
            steps, returns = _read_curve(run / EVALUATIONS)
            reference, expected = first.setdefault(environment, (run, steps))
            if not np.array_equal(steps, expected):
                raise RlpreError(
                    f"{run} was evaluated at {_schedule(steps)}, {reference} at {_schedule(expected)}: give all runs "
                    f"of {environment} the same evaluation steps"
                )
            curves.append(returns)
        seconds = np.array([read_json(run / DONE)["seconds"] for run in paths.values()], dtype=np.float64)
        seeds = tuple(cell.seed for cell in paths)
        loaded.append(Runs(environment, arm, seeds, first[environment][1], np.stack(curves), seconds))
    return loaded


def summarise(runs: Iterable[Runs], metric: Metric) -> Results:
    """The figures of every arm in every environment; the same input gives the same numbers.

    Raises:
        RlpreError: if an arm is not one of the metric's.
    """
    grouped: dict[str, dict[str, Runs]] = {}
    for group in runs:
        lookup("arm", group.arm, metric.arms)
        grouped.setdefault(group.environment, {})[group.arm] = group
    return {
        environment: {arm: _figures(arms[arm], arms.get(metric.baseline), metric) for arm in metric.arms if arm in arms}
        for environment, arms in grouped.items()
    }


def times(figures: Figures) -> Times:
    """Steps to the threshold of each run, the budget for one that never reached it, and whether it did."""
    budget = float(figures.runs.steps[-1])
    reached = np.array([step is not None for step in figures.reached_at])
    return np.array([budget if step is None else float(step) for step in figures.reached_at]), reached


def as_json(results: Results, metric: Metric) -> dict[str, Any]:
    """The content of ``results.json``; intervals are {value, low, high, n} at 95 %, null below three runs."""
    arms = {env: {arm: _figures_json(figures) for arm, figures in of.items()} for env, of in results.items()}
    return {"metric": asdict(metric), "confidence": stats.CONFIDENCE, "environments": arms}


def _figures(runs: Runs, baseline: Runs | None, metric: Metric) -> Figures:
    rng = np.random.default_rng(0)
    area = runs.areas[:, None]
    steps, reached = stats.steps_to_threshold(runs.steps, runs.returns, metric.threshold)
    ratio = improvement = None
    if baseline is not None and baseline is not runs:
        of_baseline = stats.steps_to_threshold(baseline.steps, baseline.returns, metric.threshold)
        ratio = stats.steps_ratio(of_baseline, (steps, reached), float(runs.steps[-1]), rng)
        improvement = stats.probability_of_improvement(area, baseline.areas[:, None])
    return Figures(
        runs=runs,
        curve=tuple(stats.interval(point[:, None], rng) for point in runs.returns.T),
        final=stats.interval(runs.finals[:, None], rng),
        area=stats.interval(area, rng),
        reached_at=tuple(int(step) if ok else None for step, ok in zip(steps, reached, strict=True)),
        mean_steps=stats.interval(np.maximum(steps, 1)[:, None], rng, stats.mean, logarithmic=True),
        ratio=ratio,
        improvement=improvement,
        offline_frames=metric.arms[runs.arm],
    )


def _figures_json(figures: Figures) -> dict[str, Any]:
    runs = figures.runs
    return {
        "seeds": list(runs.seeds),
        "steps": runs.steps.tolist(),
        "returns": runs.returns.tolist(),
        "seconds": runs.seconds.tolist(),
        "offline_frames": figures.offline_frames,
        "curve": [asdict(point) for point in figures.curve],
        "final_return": asdict(figures.final),
        "area_under_curve": asdict(figures.area),
        "reached_at": list(figures.reached_at),
        "mean_steps": asdict(figures.mean_steps),
        "steps_ratio": figures.ratio and asdict(figures.ratio),
        "probability_of_improvement": figures.improvement and asdict(figures.improvement),
    }


def _read_curve(path: Path) -> tuple[NDArray[np.int64], Floats]:
    try:
        with np.load(path) as file:
            steps, returns = file["timesteps"].astype(np.int64), file["results"].astype(np.float64).mean(axis=1)
    except FileNotFoundError as error:
        raise RlpreError(f"{path} is missing: the run must write SB3's EvalCallback log there") from error
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise RlpreError(f"{path} is damaged ({error}): delete {path.parent} and run the study again") from error
    if not np.isfinite(returns).all():
        raise RlpreError(f"{path} holds returns that are not finite: look at the environment's rewards")
    return steps, returns


def _schedule(steps: NDArray[np.int64]) -> str:
    return f"{len(steps)} points up to {steps[-1]} steps"
