"""The figures as a table in plain text or Markdown."""

from collections.abc import Callable

from rlpre.report.comparison.answers import reached
from rlpre.report.comparison.overall import Overall
from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.tables import Rows, aligned, piped
from rlpre.report.words import show_interval, show_ratio, thousands

LEGEND = """\
IQM over n runs [95 % interval]; with n<3 there is none. area: mean height of the learning curve. steps: mean to the
threshold, a run that never reaches it counts as the budget. ratio: steps of {0} / steps of the arm. >= and <=: bounds,
because of runs that never reach; ?: such runs in both, holds within the budget only. P(better): that a run's area is
larger than one's of {0}. frames: offline, for pretraining. minutes: wall-clock of a run.
"""
LEGEND_OVERALL = """\
All tasks: n runs of each task, pooled; the ratio is the geometric mean of the tasks' ratios.
"""


def text(results: Results, overall: dict[str, Overall], metric: Metric) -> str:
    """Aligned tables for a terminal: over all tasks if there are several, and one per environment."""
    return _document(results, overall, metric, aligned)


def markdown(results: Results, overall: dict[str, Overall], metric: Metric) -> str:
    """The same tables in Markdown."""
    return _document(results, overall, metric, piped)


def _document(results: Results, overall: dict[str, Overall], metric: Metric, draw: Callable[[Rows], str]) -> str:
    parts, legend = [], LEGEND.format(metric.baseline)
    if len(results) > 1:
        header = ["arm", "n", "final return", "area", "ratio", "P(better)"]
        parts += [f"All {len(results)} tasks", draw([header, *(_overall(arm, of) for arm, of in overall.items())])]
        legend += LEGEND_OVERALL
    for environment, arms in results.items():
        budget = next(iter(arms.values())).runs.steps[-1]
        parts.append(f"{environment}, {thousands(budget)} steps")
        parts.append(draw([_header(metric), *(_row(arm, figures) for arm, figures in arms.items())]))
    return "\n\n".join([*parts, legend])


def _header(metric: Metric) -> list[str]:
    steps = f"steps to {metric.threshold:g}"
    return ["arm", "n", "final return", "area", steps, "reached", "ratio", "P(better)", "frames", "minutes"]


def _row(arm: str, figures: Figures) -> list[str]:
    all_reached = None not in figures.reached_at
    return [
        arm,
        str(len(figures.reached_at)),
        show_interval(figures.final),
        show_interval(figures.area),
        show_interval(figures.mean_steps, thousands, "" if all_reached else ">="),
        reached(figures.reached_at),
        show_ratio(figures.ratio) if figures.ratio else "-",
        show_interval(figures.improvement) if figures.improvement else "-",
        thousands(figures.offline_frames) if figures.offline_frames else "-",
        f"{figures.runs.seconds.mean() / 60:.1f}",
    ]


def _overall(arm: str, of: Overall) -> list[str]:
    return [
        arm,
        str(len(of.seeds)),
        show_interval(of.final),
        show_interval(of.area),
        show_ratio(of.ratio) if of.ratio else "-",
        show_interval(of.improvement) if of.improvement else "-",
    ]
