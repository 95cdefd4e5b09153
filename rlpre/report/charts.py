"""Charts for a web page: inline SVG that takes the page's font and colour of text, and needs nothing else."""

import io
import math
import re
from collections.abc import Callable, Iterable

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpre.measure import stats
from rlpre.measure.stats import Floats, StepsRatio
from rlpre.report.curves import draw_against_baseline, draw_overview, style
from rlpre.report.results import Figures, Metric

WIDE, HALF, SMALL = (6.4, 3.3), (4.6, 2.7), (3.5, 2.3)  # inches
WIDTH, ARROW = 140, 5  # pixels of a strip


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


def stroke(colour: str, dashes: str) -> Markup:
    """A piece of line for a legend."""
    pattern = {"-": "", "--": "6 3", ":": "2 3"}[dashes]
    return Markup(
        '<svg class="swatch" viewBox="0 0 24 4" aria-hidden="true"><path d="M0 2H24" stroke="{}" stroke-width="3" '
        'stroke-dasharray="{}"/></svg>'
    ).format(_themed(colour), pattern)


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


def bar(low: float, value: float, high: float, label: str) -> Markup:
    """A value and its interval on an axis from -1 to 1; arrows where the interval goes on."""

    def place(at: float) -> float:
        return ARROW + (WIDTH - 2 * ARROW) * (min(max(at, -1), 1) + 1) / 2

    line = f"M{place(low):.1f} 0H{place(high):.1f}"
    if low < -1:
        line += f"M{ARROW} {-ARROW}L0 0L{ARROW} {ARROW}"
    if high > 1:
        line += f"M{WIDTH - ARROW} {-ARROW}L{WIDTH} 0L{WIDTH - ARROW} {ARROW}"
    return Markup(
        '<svg class="strip" viewBox="-1 -8 {} 16" role="img" aria-label="{}"><path d="{}"/>'
        '<circle cx="{:.1f}" r="4"/></svg>'
    ).format(WIDTH + 2, label, line, place(value))


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


def svg(size: tuple[float, float], label: str, draw: Callable[[Axes], None]) -> Markup:
    """What ``draw`` draws, ``size`` in inches; ``label`` is for those who cannot see it, and unlike on one page."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 8, "axes.linewidth": 0.5}):
        figure = Figure(figsize=size)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(text.getvalue(), label)


def _inline(svg: str, label: str) -> Markup:
    """What a page needs of matplotlib's SVG: no header, sizes, name spaces or ids of groups, and themed colours."""
    body = svg[svg.index("<svg") :]
    (box,) = re.findall(r'viewBox="([^"]+)"', body)
    body = re.sub(r"^<svg[^>]*>", "", body)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    opening = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">').format(box, label)
    return opening + Markup(_themed(body))


def _themed(text: str) -> str:
    """Black as the colour of the page's text, which is light on a dark page."""
    return text.replace("#000000", "currentColor").replace("#404040", "currentColor")
