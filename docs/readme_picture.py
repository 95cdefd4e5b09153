"""Draws docs/readme.png from results/many/rows.json; run by hand: ``PYTHONPATH=. python docs/readme_picture.py``.

Both panels show the same runs on DoorKey-5x5: the mean return over seeds with its 95 % interval. The seconds of a run
are known only as a whole, so a point at step s of S is drawn at s / S of the run's time.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rlpre.compare.summary import RETURN, SECONDS, curves, load_rows
from rlpre.evaluation.page import COLOURS, CONTROLS, draw_curve, plain_axes
from rlpre.evaluation.stats import mean_interval

ROOT = Path(__file__).parents[1]
TASK = "MiniGrid-DoorKey-5x5-v0"
ARMS = {
    "scratch": ("trained from scratch", CONTROLS[0]),
    "temporal+inverse-whitened": ("frozen, whitened encoder", COLOURS[0]),
}


def draw() -> Figure:
    """Return against minutes and against environment steps."""
    rows = [row for row in load_rows(ROOT / "results/many/rows.json") if row.task == TASK]
    learned = curves(rows, RETURN)[TASK]
    figure = Figure(figsize=(9.5, 3.9), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for arm, (label, colour) in ARMS.items():
        minutes = np.mean([row.value for row in rows if row.arm == arm and row.metric == SECONDS]) / 60
        steps = learned[arm].steps
        points = [mean_interval(values) for values in learned[arm].values.T]
        draw_curve(left, steps / steps[-1] * minutes, points, colour, label=label, linewidth=2)
        draw_curve(right, steps / 1000, points, colour, label=label, linewidth=2)
        left.plot(minutes, points[-1].value, "o", color=colour)
    left.set_title("In minutes: five times faster", fontweight="bold", loc="left")
    right.set_title("In environment steps: no difference is shown", fontweight="bold", loc="left")
    left.set(
        xlabel="minutes of training (wall-clock)", ylabel="mean return of an evaluation", xlim=(0, None), ylim=(0, 1.02)
    )
    right.set(xlabel="environment steps, in thousands", xlim=(0, None))
    for panel in (left, right):
        plain_axes(panel)
    right.legend(frameon=False, loc="lower right", title="line: mean of 3 seeds; band: 95 % interval", alignment="left")
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/readme.png")
