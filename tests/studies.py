"""Studies whose curves are made by hand."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlpre.compare.runner import FORMAT, Run
from rlpre.compare.summary import Metric, Record, read_results
from rlpre.utils import write_json

STEPS = np.arange(1000, 10_001, 1000)
METRIC = Metric({"scratch": 0, "random": 0, "jigsaw": 500, "best": 60_000}, answer="best", controls=["random"])
NEVER = None


def write_run(study: Path, run: Run, reached_at: int | None, steps: np.ndarray = STEPS) -> Path:
    """A run whose evaluations return 0.2 until a step, then 0.95."""
    path = study / run.path
    returns = np.where(steps >= (np.inf if reached_at is None else reached_at), 0.95, 0.2)
    write_json(path / "rows.json", [["return", value, int(step)] for step, value in zip(steps, returns, strict=True)])
    write_json(path / "done.json", {**asdict(run), "seconds": 90.0, "threads": 1})
    return path


def write_study(study: Path, arms: dict[str, list[int | None]], metric: Metric = METRIC, task: str = "Door") -> Path:
    """A study of runs that each reach the threshold at a step, or never."""
    for arm, runs in arms.items():
        for seed, reached_at in enumerate(runs):
            write_run(study, Run(task, arm, seed), reached_at)
    write_json(study / "study.json", {"format": FORMAT, "study": "test", "metric": asdict(metric)})
    return study


def record(study: Path, arm: str, over: str | None = "scratch", task: str = "Door") -> Record:
    """One record of a study."""
    found = read_results(study).record(task, arm, over)
    assert found is not None
    return found
