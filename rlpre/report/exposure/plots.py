"""Pictures of exposure bias: errors by step in the four contexts, excess and success by arm, switch curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from rlpre.files import atomic
from rlpre.measure.exposure import CONTEXTS
from rlpre.measure.stats import Interval
from rlpre.measure.verdict import CURES, HARMS, REDUCES
from rlpre.report.colours import COLOURS, CONTROLS
from rlpre.report.exposure.figures import Figures, Results, Turns
from rlpre.report.exposure.results import Question
from rlpre.report.words import short_names

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLOURS
# Teacher-forced is the control; free-running is what it is compared with; the channels lie between them, dashed.
STYLES = {"EE": (CONTROLS[0], "-"), "EO": (BLUE, "--"), "OE": (GREEN, "--"), "OO": (VERMILION, "-")}
NAMES = {
    "EE": "EE: teacher-forced",
    "EO": "EO: the expert's states, its own tokens",
    "OE": "OE: its own states, the expert's tokens",
    "OO": "OO: on its own",
}
VERDICTS = {CURES: GREEN, REDUCES: SKY, HARMS: VERMILION}
COLUMNS = 4


def draw_exposure(results: Results, question: Question, path: Path) -> None:
    """Draws as PNG, in one row for each level: err(t) and switch curves of the baseline, excess and success by arm."""
    arms = max(len(of) for of in results.values())
    height = max(3.0, 0.8 + 0.26 * arms)
    figure = Figure(figsize=(4.2 * COLUMNS, 0.8 + height * len(results)), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.1)
    axes = figure.subplots(len(results), COLUMNS, squeeze=False)
    for row, (level, name) in zip(axes, short_names(results).items(), strict=True):
        of = results[level]
        clone = of.get(question.baseline)
        row[0].set_title(f"{name}: {question.baseline}", fontweight="bold", loc="left")
        draw_errors(row[0], clone, "regret error") if clone else row[0].remove()
        draw_turns(row[1], clone.turns) if clone and clone.turns else row[1].remove()
        draw_arms(row[2], of, [figures.totals["regret error"]["excess"] for figures in of.values()])
        row[2].set_xlabel("excess OO - EE, regret errors an episode")
        row[2].axvline(0, color="#404040", linewidth=0.8)
        draw_arms(row[3], of, [figures.success["OO"] for figures in of.values()])
        row[3].set(xlabel="success on its own", xlim=(-0.02, 1.02))
        row[3].set_yticklabels([])
    title = "bands and bars: 95 % intervals; green: cures, light blue: reduces, red: harms, by the rule in table.md"
    handles = [line for line in axes[0, 0].get_lines() if line.get_label() in NAMES.values()]
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=COLUMNS, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_errors(panel: Axes, figures: Figures, measure: str) -> None:
    """The share of the running episodes that err at each step, in the four contexts."""
    highest = 0.0
    for context in CONTEXTS:
        curve = figures.curves[measure][context]
        bands = context in ("EE", "OO")  # more of them hide each other
        _band(panel, np.arange(1, len(curve) + 1), curve, *STYLES[context], NAMES[context], bands)
        highest = max([highest, *(point.value for point in curve if np.isfinite(point.value))])
    _frame(panel, "step", f"P({measure}) while it runs")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlim=(1, max(2, len(curve))), ylim=(0, 1.15 * highest or 1))  # of the lines: few seeds make bands wide


def draw_accumulated(panel: Axes, figures: Figures) -> None:
    """AccErr(l), between l, where errors do not accumulate, and l^2."""
    curve = figures.accumulated["regret error"]
    steps = np.arange(1, len(curve) + 1)
    for power, label in ((1, "l: none accumulates"), (2, "l²: none is made good")):
        panel.plot(steps, steps**power, color="#404040", linewidth=0.8, linestyle=(0, (1, power)), label=label)
    _band(panel, steps, curve, VERMILION, "-", "AccErr(l)")
    _frame(panel, "l, steps", "errors of OO / mean error of EE")
    panel.set(xscale="log", yscale="log", ylim=(0.7, 1.2 * len(steps) ** 2))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_locator(NullLocator())
    panel.legend(frameon=False, fontsize="small", loc="upper left")


def draw_turns(panel: Axes, turns: Turns) -> None:
    """Success when learner and expert take turns once."""
    for curve, colour, label in (
        (turns.learner_first, VERMILION, "learner first, then expert"),
        (turns.expert_first, CONTROLS[0], "expert first, then learner"),
    ):
        values = np.array([of.value for of in curve])
        low, high = np.array([(of.low, of.high) for of in curve], dtype=np.float64).T  # None becomes NaN
        reach = np.maximum([values - low, high - values], 0)
        panel.errorbar(turns.steps, values, reach, color=colour, label=label, marker="o", markersize=4, capsize=2)
    _frame(panel, "steps before the other takes over", "success")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlim=(0, 1.1 * max(turns.steps)), ylim=(-0.02, 1.05))
    panel.legend(frameon=False, fontsize="small", loc="lower right")


def draw_arms(panel: Axes, arms: dict[str, Figures], figures: Sequence[Interval]) -> None:
    """One number of every arm with its interval, in the colour of the arm's verdict."""
    for row, (of, figure) in enumerate(zip(arms.values(), figures, strict=True)):
        colour = VERDICTS.get(of.change.verdict, CONTROLS[1]) if of.change else CONTROLS[0]
        if figure.low is not None and figure.high is not None:
            panel.plot([figure.low, figure.high], [row, row], color=colour, linewidth=2)
        panel.plot(figure.value, row, "o", color=colour, markersize=5)
    _frame(panel, "", "")
    panel.set(yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.5, -0.5))
    panel.tick_params(axis="y", length=0)


def _band(
    panel: Axes, steps: np.ndarray, curve: list[Interval], colour: str, dashes: str, label: str, bands: bool = True
) -> None:
    panel.plot(steps, [point.value for point in curve], color=colour, linestyle=dashes, linewidth=1.8, label=label)
    if not bands:
        return
    ends = np.array([(point.low, point.high) for point in curve], dtype=np.float64)  # None becomes NaN
    panel.fill_between(steps, *ends.T, color=colour, alpha=0.13, linewidth=0)


def _frame(panel: Axes, x: str, y: str) -> None:
    panel.set(xlabel=x, ylabel=y)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
