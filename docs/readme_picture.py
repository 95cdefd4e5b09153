"""Draws docs/readme.png from the results: ``PYTHONPATH=. python docs/readme_picture.py``.

Two panels show the mean return over seeds with its 95 % interval against environment steps. The third shows how many
times the steps of a pretrained encoder others need, against the strength of the distraction.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpre.compare.summary import RETURN, curves, load_rows
from rlpre.evaluation.page import COLOURS, CONTROLS, draw_curve, plain_axes
from rlpre.evaluation.stats import mean_interval
from rlpre.utils import read_json

RESULTS = Path(__file__).parents[1] / "results"
EYES = {
    "scratch": ("scratch", CONTROLS[0]),
    "fresh-map": ("frozen, fresh weights", CONTROLS[1]),
    "change-soft": ("frozen, pretrained", COLOURS[0]),
    "oracle": ("true symbols (oracle)", COLOURS[2]),
}
HABITS = {
    "scratch": ("scratch", CONTROLS[0]),
    "cloned+frozen": ("PPO from a clone of 3,000 labels", COLOURS[0]),
}
STRENGTHS = {0.0: "strength-0", 0.25: "strength-25", 0.5: "strength-50", 0.75: "strength-75"}  # and the study of each
RATIOS = {"scratch": ("scratch / pretrained", CONTROLS[0]), "fresh-map": ("fresh weights / pretrained", CONTROLS[1])}
APART = 0.006  # between the points of two ratios at one strength
BEYOND = 1.12  # where an interval without an upper end stops, times the estimate


def draw() -> Figure:
    """What an encoder saves where seeing is hard, how hard it has to be, and what a cloned policy saves."""
    figure = Figure(figsize=(13, 3.9), dpi=150, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _learning(left, "eyes", "MiniGrid-MultiRoom-N2-S4-v0", EYES, "Seeing is hard: pretrain the encoder")
    _strengths(middle, "When does pretraining pay?")
    _learning(right, "habits-long", "MiniGrid-MultiRoom-N4-S5-v0", HABITS, "Rewards are rare: clone the policy")
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.63))
    right.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.4))
    return figure


def _learning(axes: Axes, study: str, task: str, arms: dict[str, tuple[str, str]], title: str) -> None:
    learned = curves([row for row in load_rows(RESULTS / study / "rows.json") if row.task == task], RETURN)[task]
    for arm, (label, colour) in arms.items():
        points = [mean_interval(values) for values in learned[arm].values.T]
        draw_curve(axes, learned[arm].steps / 1000, points, colour, label=label, linewidth=2)
    axes.set_title(title, fontweight="bold", loc="left")
    axes.set(xlabel="environment steps, in thousands", xlim=(0, None), ylabel="mean return", ylim=(-0.02, 1.02))
    plain_axes(axes)


def _strengths(axes: Axes, title: str) -> None:
    """Ratios of steps with intervals.

    Where the runs of a control do not all reach the threshold, an arrow stands for the missing upper end; where those
    of both do not, the point is hollow, because the budget decides the ratio.
    """
    for place, (control, (label, colour)) in enumerate(RATIOS.items()):
        at = [strength + APART * (2 * place - 1) for strength in STRENGTHS]
        found = [_ratio(study, control) for study in STRENGTHS.values()]
        axes.plot(at, [record["ratio"] for record in found], color=colour, linewidth=2, label=label)
        for x, record in zip(at, found, strict=True):
            top = record["high"] or BEYOND * record["ratio"]
            axes.plot([x, x], [record["low"], top], color=colour, linewidth=1)
            axes.plot(
                x, record["ratio"], "o", color=colour, markerfacecolor="white" if record["bound"] == "?" else colour
            )
            if record["high"] is None:
                axes.plot(x, top, "^", color=colour)
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_title(title, fontweight="bold", loc="left")
    axes.set(
        xlabel="strength of the drifting picture (DoorKey-5x5)", ylabel="times the steps of the pretrained", ylim=(0, 6)
    )
    axes.legend(frameon=False, loc="upper left")
    plain_axes(axes)


def _ratio(study: str, control: str) -> dict[str, float]:
    records = read_json(RESULTS / study / "summary.json")["records"]
    return next(record for record in records if record["arm"] == "change-soft" and record["over"] == control)


if __name__ == "__main__":
    draw().savefig(RESULTS.parent / "docs/readme.png")
