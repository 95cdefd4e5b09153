"""The answer in words, and the figures as a table in plain text or Markdown."""

from collections.abc import Callable

from rlpre.measure.stats import FEWEST, Interval, StepsRatio
from rlpre.report.results import Figures, Metric, Results

Rows = list[list[str]]

LEGEND = """\
IQM over n runs [95 % interval]; with n<3 there is none. area: mean height of the learning curve. steps: mean to the
threshold, a run that never reaches it counts as the budget. ratio: steps of {0} / steps of the arm. >= and <=: bounds,
because of runs that never reach; ?: such runs in both, holds within the budget only. P(better): that a run's area is
larger than one's of {0}. frames: offline, for pretraining. minutes: wall-clock of a run.
"""


def answers(results: Results, metric: Metric) -> str:
    """One sentence per environment: how many environment steps did pretraining save?"""
    return "\n".join(f"{environment}: {_answer(arms, metric)}" for environment, arms in results.items())


def text(results: Results, metric: Metric) -> str:
    """Aligned tables for a terminal, one per environment."""
    return _document(results, metric, aligned)


def markdown(results: Results, metric: Metric) -> str:
    """The same tables in Markdown."""
    return _document(results, metric, _piped)


def _document(results: Results, metric: Metric, draw: Callable[[Rows], str]) -> str:
    parts = []
    for environment, arms in results.items():
        budget = next(iter(arms.values())).runs.steps[-1]
        parts.append(f"{environment}, {_thousands(budget)} steps")
        parts.append(draw([_header(metric), *(_row(arm, figures) for arm, figures in arms.items())]))
    return "\n\n".join([*parts, LEGEND.format(metric.baseline)])


def _header(metric: Metric) -> list[str]:
    steps = f"steps to {metric.threshold:g}"
    return ["arm", "n", "final return", "area", steps, "reached", "ratio", "P(better)", "frames", "minutes"]


def _row(arm: str, figures: Figures) -> list[str]:
    reached = sum(step is not None for step in figures.reached_at)
    n = len(figures.reached_at)
    return [
        arm,
        str(n),
        _interval(figures.final),
        _interval(figures.area),
        _interval(figures.mean_steps, _thousands, ">=" if reached < n else ""),
        f"{reached}/{n}",
        _ratio(figures.ratio) if figures.ratio else "-",
        _interval(figures.improvement) if figures.improvement else "-",
        _thousands(figures.offline_frames) if figures.offline_frames else "-",
        f"{figures.runs.seconds.mean() / 60:.1f}",
    ]


def _answer(arms: dict[str, Figures], metric: Metric) -> str:
    missing = [arm for arm in (metric.baseline, metric.answer) if arm not in arms]
    if missing:
        return f"no answer, {' and '.join(missing)} has no finished run."
    baseline, treated = arms[metric.baseline], arms[metric.answer]
    saved, budget = treated.ratio, _thousands(treated.runs.steps[-1])
    if saved is None or saved.baseline_reached + saved.treated_reached == 0:
        return (
            f"no answer, no run of {metric.baseline} or {metric.answer} reached {metric.threshold:g} in {budget} steps."
        )
    slow, fast = _thousands(baseline.mean_steps.value), _thousands(treated.mean_steps.value)
    runs = [f"{sum(step is not None for step in arm.reached_at)}/{len(arm.reached_at)}" for arm in (baseline, treated)]
    facts = (
        f"to reach {metric.threshold:g}, {metric.baseline} needs {_ratio(saved)} times the steps of {metric.answer} "
        f"({slow} and {fast}; {runs[0]} and {runs[1]} runs reach it in {budget})"
    )
    if saved.ratio.low is None or saved.ratio.high is None:
        return f"no answer, fewer than {FEWEST} runs of an arm say nothing about the next ones; here, {facts}."
    cost = f", after {_thousands(treated.offline_frames)} offline frames" if treated.offline_frames else ""
    verdict = _verdict(saved.ratio.low, saved.ratio.high, saved.bound)
    if verdict == "unclear":
        return f"not known, the interval does not exclude 1: {facts}{cost}."
    difference = _thousands(abs(baseline.mean_steps.value - treated.mean_steps.value))
    least = "at least " if saved.bound in (">=", "<=") else ""
    return f"pretraining {verdict} {least}{difference} environment steps: {facts}{cost}."


def _verdict(low: float, high: float, bound: str) -> str:
    """What the interval of the ratio allows to say; a bound leaves one of its ends open."""
    if low > 1 and bound != "<=":
        return "saved"
    if high < 1 and bound != ">=":
        return "cost"
    return "unclear"


def _ratio(saved: StepsRatio) -> str:
    if saved.baseline_reached + saved.treated_reached == 0:
        return "? (none reach)"
    return _interval(saved.ratio, bound=saved.bound)


def _interval(figure: Interval, show: Callable[[float], str] = "{:.2f}".format, bound: str = "") -> str:
    """A bound leaves one end of the interval open."""
    if figure.low is None or figure.high is None:
        return f"{bound}{show(figure.value)} (n<{FEWEST})"
    low = "0" if bound == "<=" else show(figure.low)
    high = "inf" if bound == ">=" else show(figure.high)
    return f"{bound}{show(figure.value)} [{low}, {high}]"


def _thousands(count: float) -> str:
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def aligned(rows: Rows) -> str:
    """Columns of equal width, with a rule under the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _piped(rows: Rows) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
