"""Charts of a comparison for its page."""

import math
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from rlpre.measure import stats
from rlpre.measure.stats import Floats, StepsRatio
from rlpre.report.comparison.curves import draw_against_baseline, draw_overview, style
from rlpre.report.comparison.results import Figures, Metric
from rlpre.report.svg import HALF, SMALL, WIDE, bar, stroke, svg


def overview(arms: dict[str, Figures], metric: Metric) -> Markup:
    """The IQM of every arm in one environment."""
    environment = next(iter(arms.values())).runs.environment
    return svg(WIDE, f"learning curves of all arms on {environment}", lambda axes: draw_overview(axes, arms, metric))


def against_baseline(arm: str, arms: dict[str, Figures], metric: Metric) -> Markup:
    """One arm and the baseline in one environment."""
    label = f"learning curves of {arm} and {metric.baseline} on {arms[arm].runs.environment}"
    return svg(SMALL, label, lambda axes: draw_against_baseline(axes, arm, arms, metric))


def profile(scores: dict[str, Floats], score: str, metric: Metric) -> Markup:
    """Performance profiles: by arm, scores (runs, tasks) of what ``score`` names."""
    return svg(HALF, f"performance profile of the {score}", lambda axes: _draw_profile(axes, scores, score, metric))


def swatch(arm: str, metric: Metric) -> Markup:
    """The line that stands for an arm."""
    return stroke(*style(arm, metric))


def span(ratios: Iterable[StepsRatio | None]) -> float:
    """How far from 1 the strips of some ratios must reach, at least 2 and at most 20."""
    ends = [end for found in ratios if found for end in (found.ratio.value, found.ratio.low, found.ratio.high) if end]
    return 1.1 * float(np.clip(max([max(end, 1 / end) for end in ends], default=2), 2, 20))


def strip(found: StepsRatio, reach: float) -> Markup:
    """A ratio and its interval on a logarithmic axis from 1 / reach to reach; arrows where the interval goes on."""
    if found.baseline_reached + found.treated_reached == 0:
        return Markup()
    low = 0.0 if found.bound == "<=" else found.ratio.low or found.ratio.value
    high = math.inf if found.bound == ">=" else found.ratio.high or found.ratio.value

    def place(ratio: float) -> float:
        return math.log(max(ratio, 1e-9)) / math.log(reach)

    return bar(place(low), place(found.ratio.value), place(high), f"{found.ratio.value:.2f}")


def _draw_profile(panel: Axes, scores: dict[str, Floats], score: str, metric: Metric) -> None:
    every = np.concatenate([of.ravel() for of in scores.values()])
    margin = 0.05 * float(np.ptp(every)) or 0.5
    ends = every.min() - margin, every.max() + margin
    for arm, of in scores.items():
        colour, dashes = style(arm, metric)
        levels = np.unique([*ends, *of.ravel()])  # where its steps are
        shares = stats.performance_profile(of, levels, np.random.default_rng(0))
        values = [point.value for point in shares]
        panel.plot(levels, values, color=colour, linestyle=dashes, linewidth=1.6, drawstyle="steps-post")
        band = [(point.low, point.high) for point in shares if point.low is not None and point.high is not None]
        if band and arm in (metric.baseline, metric.answer):  # more bands hide each other
            low, high = np.clip(band, 0, 1).T
            panel.fill_between(levels, low, high, color=colour, alpha=0.12, linewidth=0, step="post")
    panel.set(xlabel=score, ylabel="share of runs above", xlim=ends, ylim=(-0.03, 1.03))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
