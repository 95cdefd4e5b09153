"""Draws docs/readme.png from results/eyes and results/habits: ``PYTHONPATH=. python docs/readme_picture.py``.

Both panels show the mean return over seeds with its 95 % interval against environment steps.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpre.compare.summary import RETURN, curves, load_rows
from rlpre.evaluation.page import COLOURS, CONTROLS, draw_curve, plain_axes
from rlpre.evaluation.stats import mean_interval

RESULTS = Path(__file__).parents[1] / "results"
EYES = {
    "scratch": ("scratch", CONTROLS[0]),
    "fresh-map": ("frozen, fresh weights", CONTROLS[1]),
    "change-soft": ("frozen, pretrained", COLOURS[0]),
    "oracle": ("true symbols (oracle)", COLOURS[2]),
}
HABITS = {
    "fresh-map": ("PPO alone", CONTROLS[1]),
    "cloned+frozen": ("PPO from a clone of 3,000 labels", COLOURS[0]),
    "cloned+frozen, no KL": ("without KL", COLOURS[1]),
}


def draw() -> Figure:
    """What an encoder saves where seeing is hard, and what a cloned policy saves where rewards are rare."""
    figure = Figure(figsize=(9.5, 3.9), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, "eyes", "MiniGrid-MultiRoom-N2-S4-v0", EYES, "Seeing is hard: pretrain the encoder")
    _panel(right, "habits", "MiniGrid-MultiRoom-N4-S5-v0", HABITS, "Rewards are rare: clone the policy")
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.63))
    right.legend(frameon=False, loc="upper left")
    left.set(ylabel="mean return of an evaluation", ylim=(0, 1.02))
    return figure


def _panel(axes: Axes, study: str, task: str, arms: dict[str, tuple[str, str]], title: str) -> None:
    learned = curves([row for row in load_rows(RESULTS / study / "rows.json") if row.task == task], RETURN)[task]
    for arm, (label, colour) in arms.items():
        points = [mean_interval(values) for values in learned[arm].values.T]
        draw_curve(axes, learned[arm].steps / 1000, points, colour, label=label, linewidth=2)
    axes.set_title(title, fontweight="bold", loc="left")
    axes.set(xlabel="environment steps, in thousands", xlim=(0, None))
    plain_axes(axes)


if __name__ == "__main__":
    draw().savefig(RESULTS.parent / "docs/readme.png")
