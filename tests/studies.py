"""Studies whose curves are made by hand."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlpre.files import write_json
from rlpre.report.comparison.overall import Overall, summarise_overall
from rlpre.report.comparison.results import Metric, Results, load_metric, load_runs, summarise
from rlpre.study import Cell

STEPS = np.arange(1000, 10_001, 1000)
METRIC = Metric({"scratch": 0, "random": 0, "jigsaw": 500, "best": 60_000}, answer="best")
NEVER = None


def write_run(study: Path, cell: Cell, reached_at: int | None, steps: np.ndarray = STEPS) -> Path:
    """A run whose two evaluation episodes return 0.1 and 0.3 until a step, then 0.9 and 1.0."""
    run = study / cell.path
    run.mkdir(parents=True)
    solved = steps >= (np.inf if reached_at is None else reached_at)
    np.savez(run / "evaluations.npz", timesteps=steps, results=np.where(solved[:, None], [0.9, 1.0], [0.1, 0.3]))
    write_json(run / "done.json", {**asdict(cell), "seconds": 90.0, "threads": 1})
    return run


def write_study(study: Path, arms: dict[str, list[int | None]], metric: Metric = METRIC, env: str = "Door") -> Path:
    """A study of runs that each reach the threshold at a step, or never."""
    for arm, runs in arms.items():
        for seed, reached_at in enumerate(runs):
            write_run(study, Cell(env, arm, seed), reached_at)
    write_json(study / "study.json", {"metric": asdict(metric)})
    return study


def results_of(study: Path) -> Results:
    """The figures of a study."""
    return summarise(load_runs(study), load_metric(study))


def overall_of(study: Path) -> dict[str, Overall]:
    """The figures of a study over all its tasks."""
    return summarise_overall(results_of(study), load_metric(study))
