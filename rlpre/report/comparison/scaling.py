"""What more offline frames bring: probes and steps against the number of different ones."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlpre.files import atomic
from rlpre.measure.stats import Interval
from rlpre.report.colours import COLOURS, CONTROLS, DASHES
from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.comparison.why import Why
from rlpre.report.svg import HALF, svg
from rlpre.report.words import short_names


def draw_scaling(results: Results, why: Why, metric: Metric, path: Path) -> None:
    """Draws the curves as PNG: for each environment a panel of probes and one of steps to the threshold."""
    figure = Figure(figsize=(10, 0.4 + 3.6 * len(why.sizes)), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    names = short_names(results)
    rows = figure.subplots(len(why.sizes), 2, squeeze=False)
    for (probes, steps), environment in zip(rows, why.sizes, strict=True):
        draw_probes(probes, environment, why)
        draw_steps(steps, environment, results[environment], why, metric)
        probes.set_title(names[environment], fontweight="bold", loc="left")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def scaling_charts(environment: str, results: Results, why: Why, metric: Metric) -> list[Markup]:
    """The same two panels for a page."""
    arms = results[environment]
    return [
        svg(HALF, f"probes by frames on {environment}", lambda panel: draw_probes(panel, environment, why)),
        svg(HALF, f"steps by frames on {environment}", lambda panel: draw_steps(panel, environment, arms, why, metric)),
    ]


def draw_probes(panel: Axes, environment: str, why: Why) -> None:
    """Score of every label against the number of frames; dotted, that of an encoder that has seen none."""
    encoders, sizes = why.measured[environment], why.sizes[environment]
    unseen = next((of for of in encoders.values() if of.distinct is None), None)
    labels = [label for label in encoders[next(iter(sizes.values()))].probes]
    for label, colour in zip(labels, COLOURS, strict=False):
        known = {size: encoders[arm].probes[label] for size, arm in sizes.items() if label in encoders[arm].probes}
        _curve(panel, known, colour, label)
        if unseen and label in unseen.probes:
            panel.axhline(unseen.probes[label].value, color=colour, linestyle=":", linewidth=1)
    _frame(panel, "probe score (dotted: fresh weights)")


def draw_steps(panel: Axes, environment: str, arms: dict[str, Figures], why: Why, metric: Metric) -> None:
    """Steps to the threshold against the number of frames, and those of arms without frames."""
    sizes = why.sizes[environment]
    _curve(panel, {size: arms[arm].mean_steps for size, arm in sizes.items()}, COLOURS[0], "pretrained")
    controls = [arm for arm, frames in metric.arms.items() if not frames and arm in arms]
    for place, arm in enumerate(controls):
        colour, dashes = CONTROLS[place % len(CONTROLS)], DASHES[place % len(DASHES)]
        found = arms[arm].mean_steps
        panel.axhline(found.value, color=colour, linestyle=dashes, label=arm)
        if found.low is not None and found.high is not None:
            panel.axhspan(found.low, found.high, color=colour, alpha=0.1, linewidth=0)
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set_ylim(0, 1.1 * max(figures.runs.steps[-1] for figures in arms.values()))
    _frame(panel, f"steps to {metric.threshold:g}")


def _curve(panel: Axes, points: dict[int, Interval], colour: str, label: str) -> None:
    panel.plot(list(points), [of.value for of in points.values()], "o-", color=colour, linewidth=1.6, label=label)
    known = {at: of for at, of in points.items() if of.low is not None and of.high is not None}
    if known:
        low, high = np.array([(of.low, of.high) for of in known.values()], dtype=np.float64).T
        panel.fill_between(list(known), low, high, color=colour, alpha=0.15, linewidth=0)


def _frame(panel: Axes, what: str) -> None:
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set(xlabel="different offline frames", ylabel=what)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    panel.legend(frameon=False, fontsize="small")
