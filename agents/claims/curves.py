"""A picture that several claims draw: scores by a number such as that of labels."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rlpre.evaluation.page import draw_curve, plain_axes
from rlpre.evaluation.stats import mean_interval

COLOURS = ("#0072B2", "#D55E00", "#999999", "#009E73", "#CC79A7")


def draw_curves(x: Sequence[float], curves: Mapping[str, ArrayLike], across: str, up: str, log: str = "") -> Figure:
    """Draws means with 95 % intervals.

    Args:
        x: (points,).
        curves: by name the scores, (seeds, points).
        across: what ``x`` is.
        up: what the scores are.
        log: the logarithmic axes, "x", "y" or "xy".
    """
    figure = Figure(figsize=(3.2, 2.2), layout="constrained")
    panel = figure.subplots()
    for colour, (name, scores) in zip(COLOURS, curves.items(), strict=False):
        draw_curve(panel, x, [mean_interval(column) for column in zip(*scores, strict=True)], colour, label=name)
    panel.set(xlabel=across, ylabel=up, xscale="log" if "x" in log else "linear")
    panel.set_yscale("log" if "y" in log else "linear")
    panel.legend(frameon=False, fontsize="small")
    plain_axes(panel)
    return figure
