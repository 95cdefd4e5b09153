"""Learning curves with intervals, as a picture."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlpre.files import atomic
from rlpre.report.colours import COLOURS, CONTROLS, DASHES
from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.words import short_names

COLUMNS = 3  # of panels, at most


def draw_curves(results: Results, metric: Metric, path: Path) -> None:
    """Draws the learning curves as PNG.

    For each environment one panel with the IQM of every arm; if there is one alone, then one per arm against the
    baseline with every run and the 95 % bands: bands of more than two arms hide each other. Arms keep their colour from
    study to study as long as they keep their place in ``metric.arms``.
    """
    names, ((_, only), *others) = short_names(results), results.items()
    each = [] if others else treated(only, metric)
    count = len([*results, *each])
    columns = min(COLUMNS, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.4 * columns, 1.2 + 3.2 * rows), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for environment, arms in results.items():
        panel = panels.pop(0)
        panel.set_title(names[environment], fontweight="bold")
        draw_overview(panel, arms, metric)
    for arm in each:
        panel = panels.pop(0)
        panel.set_title(arm, color=style(arm, metric)[0])
        draw_against_baseline(panel, arm, only, metric)
    for empty in panels:
        empty.remove()
    lines = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    shown = [arm for arm in metric.arms if arm in lines]
    title = "thick: IQM over runs; thin: runs; band: 95 % interval; dotted: threshold" if each else "IQM over runs"
    handles = [lines[arm] for arm in shown]
    figure.legend(handles, shown, title=title, loc="outside lower center", ncols=columns, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def treated(arms: Iterable[str], metric: Metric) -> list[str]:
    """The arms that are compared with the baseline."""
    return [arm for arm in arms if arm != metric.baseline]


def draw_overview(panel: Axes, arms: dict[str, Figures], metric: Metric) -> None:
    """The IQM of every arm in one environment."""
    _frame(panel, arms, metric)
    for arm, figures in arms.items():
        _line(panel, figures, metric, label=arm)


def draw_against_baseline(panel: Axes, arm: str, arms: dict[str, Figures], metric: Metric) -> None:
    """One arm and the baseline in one environment, with every run and the bands."""
    _frame(panel, arms, metric)
    for name in (metric.baseline, arm):
        if name in arms:
            _spread(panel, arms[name], metric)
            _line(panel, arms[name], metric)


def _frame(panel: Axes, arms: dict[str, Figures], metric: Metric) -> None:
    returns = np.concatenate([figures.runs.returns.ravel() for figures in arms.values()])
    low, high = min(returns.min(), metric.threshold), max(returns.max(), metric.threshold)
    margin = 0.05 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)  # of the runs, not of the bands, which are wide with few runs
    panel.set_xlim(0, max(figures.runs.steps[-1] for figures in arms.values()))
    panel.axhline(metric.threshold, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set(xlabel="environment steps", ylabel="evaluation return")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)


def _line(panel: Axes, figures: Figures, metric: Metric, label: str | None = None) -> None:
    colour, dashes = style(figures.runs.arm, metric)
    values = [point.value for point in figures.curve]
    panel.plot(figures.runs.steps, values, color=colour, linestyle=dashes, linewidth=2, label=label)


def _spread(panel: Axes, figures: Figures, metric: Metric) -> None:
    """The runs, and the band if there are enough of them."""
    colour, _ = style(figures.runs.arm, metric)
    steps = figures.runs.steps
    panel.plot(steps, figures.runs.returns.T, color=colour, linewidth=0.7, alpha=0.5)
    band = [(point.low, point.high) for point in figures.curve if point.low is not None and point.high is not None]
    if band:
        panel.fill_between(steps, *np.array(band).T, color=colour, alpha=0.15, linewidth=0)


def style(arm: str, metric: Metric) -> tuple[str, str]:
    """Colour and dashes of an arm, by its place among the controls or among the pretrained arms."""
    controls = [name for name, frames in metric.arms.items() if frames == 0 or name == metric.baseline]
    controls.sort(key=lambda name: name != metric.baseline)
    if arm in controls:
        place = controls.index(arm)
        return CONTROLS[place % len(CONTROLS)], DASHES[place % len(DASHES)]
    place = [name for name in metric.arms if name not in controls].index(arm)
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
