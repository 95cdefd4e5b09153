"""The published results follow from the published curves."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlpre.compare.runner import Row
from rlpre.compare.summary import ALL, Metric, curves, summarise

RESULTS = Path(__file__).parents[1] / "results"
OLD = [path for path in sorted(RESULTS.glob("*/results.json")) if "environments" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parent.name)
def test_numbers_move_within_the_noise_of_the_old_bootstrap(path):
    old = json.loads(path.read_text())
    metric = Metric(**old["metric"])
    rows = [
        Row("", task, arm, seed, "return", value, step)
        for task, arms in old["environments"].items()
        for arm, of in arms.items()
        for seed, returns in zip(of["seeds"], of["returns"], strict=True)
        for step, value in zip(of["steps"], returns, strict=True)
    ]
    found = curves(rows)
    tasks = {task: {arm: arms[arm] for arm in metric.arms if arm in arms} for task, arms in found.items()}
    for of in summarise(tasks, metric):
        before = (old["overall"] if of.task == ALL else old["environments"][of.task])[of.arm]
        pairs = [(of.final, before["final_return"], False), (of.area, before["area_under_curve"], False)]
        if of.steps:
            pairs.append((of.steps, before["mean_steps"], True))
        if of.ratio:
            assert of.ratio.bound == before["steps_ratio"]["bound"]
            pairs.append((of.ratio.ratio, before["steps_ratio"]["ratio"], True))
            pairs.append((of.better, before["probability_of_improvement"], False))
        for new, then, logarithmic in pairs:
            assert new.value == pytest.approx(then["value"])
            ends = np.array([[new.low, new.high], [then["low"], then["high"]]])
            after, width = np.ptp(np.log(ends) if logarithmic else ends, axis=1)
            assert after == pytest.approx(width, rel=0.1, abs=1e-9)
