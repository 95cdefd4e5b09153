"""The report on a study of exposure bias: is there any, and what corrects it?"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from agents import exposure_metrics as metrics
from agents.exposure_metrics import CONTEXTS, CURES, HARMS, NO_VERDICT, REDUCES, Change, Numbers, Record, Records
from rlpre.compare.report import write_report
from rlpre.compare.runner import DONE, finished_runs, read_rows
from rlpre.errors import RlpreError
from rlpre.evaluation import page
from rlpre.evaluation.page import COLOURS, CONTROLS, Answer, Table, Toned, percent, sentence, show_interval, signed
from rlpre.evaluation.stats import FEWEST, Interval
from rlpre.utils import read_json

RECORD = "contexts.npz"
BASELINE = "clone"  # the arm that the others are compared with
CLONE, CORRECTION, CONTROL = "clone", "correction", "control"  # kinds of arms; clones get no verdict
MEASURED, NOT_MEASURED = "measured", "not measured"
TONES = {CURES: "good", REDUCES: "good", HARMS: "bad"}
BLUE, VERMILION, GREEN, _, _, SKY = COLOURS
VERDICT_COLOURS = {CURES: GREEN, REDUCES: SKY, HARMS: VERMILION}
STYLES = {"EE": (CONTROLS[0], "-"), "EO": (BLUE, "--"), "OE": (GREEN, "--"), "OO": (VERMILION, "-")}
READING = (
    "The same policy is asked at every step of the same test episodes in four contexts. The first letter says whose "
    "states it sees, the second whose actions are in its history: the expert's (E) or its own (O; in OE those that the "
    "expert would have chosen there). EE is teacher forcing, OO is acting alone.",
    "A regret error is an action that raises the expert's cost to go; a disagreement is an action that is not the "
    "expert's, though it may be as good. Errors are means per episode up to the horizon. excess: OO - EE, also in % of "
    "EE. interaction: OO - EO - OE + EE. excess alive: adds up the shares of errors among the episodes that still run. "
    "AccErr(l): the errors up to step l over the mean error of a teacher-forced step, l if errors do not accumulate, l "
    "squared at most. slope: d log AccErr / d log l while OO has made fewer than 0.3 errors. recovery: share of errors "
    "after which the next step is right. nll: of the expert's action, in nats. gap: success of the expert - success.",
    "Changes are against the clone, pair by pair of seed and episode. A number rises or falls if its 95 % interval "
    "excludes 0. The verdicts follow a rule that was fixed before anything was measured. harms: success falls, or OO "
    "rises and success does not. cures: OO and the excess fall, and the smaller of the two falls (removed) is at "
    "least half of the clone's excess. reduces: it is less than half. no effect: anything else, also where the clone "
    "shows no excess; it does not mean that there is none.",
    "Intervals of 95 % are over seeds and test episodes, which all seeds share. Of twenty comparisons without an "
    f"effect one excludes 0. Fewer than {FEWEST} seeds have no interval. (?): undefined in too many resamples.",
)


@dataclass(frozen=True)
class Arm:
    """The results of one arm on one level.

    Attributes:
        records: of the finished runs.
        minutes: mean duration of a run.
        numbers: see `agents.exposure_metrics.numbers`.
        change: against the baseline; None for clones, and without common seeds.
    """

    records: Records
    minutes: float
    numbers: Numbers
    change: Change | None

    def __getitem__(self, name: str) -> Interval:
        (number,) = self.numbers[name]
        return number

    @property
    def verdict(self) -> str:
        """On what the arm changed."""
        return self.change.verdict if self.change else NO_VERDICT


Results = dict[str, dict[str, Arm]]  # level -> arm


def report(directory: Path, arms: Mapping[str, str], horizons: Mapping[str, int]) -> str:
    """Reports on a study of exposure bias, as far as it has come; returns the text.

    Args:
        directory: a study of runs (level, arm, seed), each with a `Record`; receives the report.
        arms: every arm in reading order, and its kind.
        horizons: level -> steps over which errors are added up.

    Raises:
        RlpreError: if there is no finished run.
    """
    results = summarise(directory, arms, horizons)
    summary: list[dict[str, Any]] = []
    for level, each in results.items():
        for name, arm in each.items():
            entry = {"task": level, "arm": name}
            single = {key: points[0] for key, points in arm.numbers.items() if len(points) == 1}
            summary += [{**entry, "over": None, "metric": key, **asdict(point)} for key, point in single.items()]
            for key, point in vars(arm.change).items() if arm.change else ():
                found = {"verdict": arm.verdict, "removed": arm.change.removed} if arm.change else {}
                summary.append({**entry, "over": BASELINE, "metric": key, **asdict(point), **found})
    return write_report(directory, make_page(results, arms, horizons), draw(results), summary, read_rows(directory))


def summarise(directory: Path, arms: Mapping[str, str], horizons: Mapping[str, int]) -> Results:
    """The results of every arm on every level; the same records give the same numbers."""
    runs = finished_runs(directory)
    if not runs:
        raise RlpreError(f"{directory} holds no finished run: run the study first")
    results: Results = {}
    for level, horizon in horizons.items():
        records: dict[str, dict[int, Record]] = {arm: {} for arm in arms}
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        for run, path in runs.items():
            if run.task == level:
                records[run.arm][run.seed] = Record.load(path / RECORD)
                seconds[run.arm].append(read_json(path / DONE)["seconds"])
        for arm, kind in arms.items():
            if records[arm]:
                rng = np.random.default_rng(0)
                numbers = metrics.numbers(records[arm], horizon, rng)
                change = metrics.change(records[arm], records[BASELINE], horizon, rng) if kind != CLONE else None
                each = Arm(records[arm], float(np.mean(seconds[arm])) / 60, numbers, change)
                results.setdefault(level, {})[arm] = each
    return results


def level_answer(clone: Arm | None, horizon: int) -> Answer:
    """Does the clone show exposure bias on a level?"""
    if clone is None:
        return Answer(NO_VERDICT, f"{BASELINE} has no finished run")
    excess, more, growth = (clone[f"regret error {name}"] for name in ("excess", "percent", "slope"))
    facts = (
        f"in {horizon} steps {BASELINE} makes {clone['regret error OO'].value:.2f} regret errors an episode on its own "
        f"and {clone['regret error EE'].value:.2f} teacher-forced, an excess of {show_interval(excess)}"
        f"{'' if np.isnan(more.value) else f' ({more.value:+.0f} %)'}"
        f"{'' if np.isnan(growth.value) else f' with a slope of {show_interval(growth)}'}; it succeeds in "
        f"{percent(clone['success OO'].value)} of the episodes, the expert in {percent(clone['success EE'].value)}"
    )
    if excess.low is None:
        return Answer(NO_VERDICT, f"fewer than {FEWEST} seeds give no answer", facts)
    if metrics.above(excess):
        return Answer(MEASURED, "exposure bias is measured", facts)
    why = "it errs less on its own" if metrics.below(excess) else "the interval of the excess contains 0"
    return Answer(NOT_MEASURED, "no exposure bias is measured", f"{facts}; {why}")


def overall_answer(results: Results, arms: Mapping[str, str], horizons: Mapping[str, int]) -> Answer:
    """On how many levels is exposure bias measured, and on how many is it cured?"""
    names = page.short_names(results)
    found = {level: level_answer(each.get(BASELINE), horizons[level]) for level, each in results.items()}
    biased, unknown = ([level for level in found if found[level].verdict == kind] for kind in (MEASURED, NO_VERDICT))
    cures = {level: [arm for arm, one in results[level].items() if one.verdict == CURES] for level in biased}
    cured = [level for level in biased if any(arms[arm] == CORRECTION for arm in cures[level])]
    claim = f"exposure bias is measured on {len(biased) or 'none'} of {len(found)} levels"
    claim += f", and cured on {len(cured) or 'none'}" if biased else ""
    claim = "no level has an answer yet" if len(unknown) == len(found) else claim
    facts = [f"{' and '.join(by)} cure{'s' * (len(by) == 1)} it on {names[level]}" for level, by in cures.items() if by]
    facts += [f"{found[level].claim} on {names[level]}" for level in unknown]
    verdict = CURES if cured else MEASURED if biased else NO_VERDICT if unknown else NOT_MEASURED
    return Answer(verdict, claim, "; ".join(facts))


def reason(change: Change) -> str:
    """Why the verdict is what it is."""
    reasons = {
        NO_VERDICT: f"fewer than {FEWEST} seeds",
        CURES: "at least half of the excess is removed",
        REDUCES: "less than half of the excess is removed",
        HARMS: "success falls" if metrics.below(change.success) else "it errs more on its own",
    }
    if change.verdict in reasons:
        return reasons[change.verdict]
    if change.removed is None:
        return "there is no excess to remove"
    if metrics.above(change.free):
        return "it errs more on its own, and succeeds more"
    if metrics.below(change.free):
        return "it errs less on its own, and teacher-forced too"
    if metrics.below(change.excess):
        return "the excess falls only because it errs more teacher-forced"
    return "neither its errors on its own nor the excess surely fall"


def make_page(results: Results, arms: Mapping[str, str], horizons: Mapping[str, int]) -> page.Page:
    """The report as a page."""
    names, answer = page.short_names(horizons), overall_answer(results, arms, horizons)
    missing = {names[level]: [arm for arm in arms if arm not in results.get(level, {})] for level in horizons}
    gaps = [f"{', '.join(absent)} on {level}" for level, absent in missing.items() if absent]
    rows: list[list[page.Cell]] = [
        [f"{arm} (control)" if kind == CONTROL else arm, *(_verdict(each.get(arm)) for each in results.values())]
        for arm, kind in arms.items()
        if kind != CLONE
    ]
    verdicts = Table(["arm", *(names[level] for level in results)], rows, note=f"Against {BASELINE}.")
    sections = [page.Section("Verdicts", blocks=[verdicts])] if rows else []
    sections += [_level_section(names[level], results[level], horizons[level]) for level in results]
    return page.Page(
        "Is there exposure bias, and what corrects it?",
        f"{sentence(answer.claim)}.",
        {CURES: "good", MEASURED: "bad"}.get(answer.verdict, ""),
        [f"{sentence(answer.facts)}."] if answer.facts else [],
        [f"Without a finished run: {'; '.join(gaps)}."] if gaps else [],
        [*sections, page.Section("Reading the numbers", READING)],
    )


def _verdict(arm: Arm | None) -> Toned:
    verdict = arm.verdict if arm else NO_VERDICT
    return Toned(verdict, TONES.get(verdict, "soft"))


def _level_section(name: str, arms: dict[str, Arm], horizon: int) -> page.Section:
    """What was measured on one level."""
    errors, changes, more = [], [], []
    for arm, one in arms.items():
        row = [show_interval(one[f"regret error {key}"]) for key in (*CONTEXTS, "excess")]
        more_errors = show_interval(one["regret error percent"], "{:+.0f}".format)
        row += [more_errors, *(show_interval(one[key]) for key in ("regret error interaction", "success OO"))]
        errors.append([arm, str(len(one.records)), *row, f"{one.minutes:.1f}"])
        keys = ("regret error slope", "regret error excess alive", "error excess")
        keys += ("recovery EE", "recovery OO", "nll EE", "nll OO", "success gap")
        more.append(
            [
                arm,
                *(show_interval(one[key]) for key in keys),
                str(sum((~record.kept).sum() for record in one.records.values())),
            ]
        )
        if change := one.change:
            removed = "-" if change.removed is None else percent(change.removed)
            shifts = map(signed, (change.free, change.forced, change.success))
            changes.append([arm, _verdict(one), signed(change.excess), removed, *shifts, reason(change)])
    head = ["arm", "n", *CONTEXTS, "excess", "%", "interaction", "success", "minutes"]
    blocks: list[Table | page.Gallery] = [
        page.Gallery([page.Figure(f"{title}, {name}", _plot(each)) for title, each in panels(arms).items()]),
        Table(head, errors, "Regret errors per episode"),
    ]
    if changes:
        head = ["arm", "verdict", "excess", "removed", "OO", "EE", "success", "why"]
        blocks.append(Table(head, changes, f"Changes against {BASELINE}"))
    head = ["arm", "slope", "excess alive", "excess of disagreement", "recovery EE", "recovery OO", "nll EE", "nll OO"]
    blocks.append(Table([*head, "success gap", "dropped"], more, "Growth, recovery, likelihood"))
    return page.Section(name, [sentence(str(level_answer(arms.get(BASELINE), horizon)))], blocks)


def _plot(draw_panel: Callable[[Axes], None]) -> Plot:
    plot = Plot(figsize=(4.6, 2.9), layout="constrained")
    draw_panel(plot.subplots())
    return plot


def draw(results: Results) -> Plot:
    """One row of panels for each level."""
    columns = ["Regret errors by step", "One switch", "Excess", "Success"]
    height = max(3.0, 0.8 + 0.26 * max(map(len, results.values())))
    plot = Plot(figsize=(4.2 * len(columns), 0.8 + height * len(results)), dpi=150)
    plot.set_layout_engine("constrained", w_pad=0.08, h_pad=0.1)
    rows = plot.subplots(len(results), len(columns), squeeze=False)
    for row, (level, name) in zip(rows, page.short_names(results).items(), strict=True):
        drawn = panels(results[level])
        for axes, title in zip(row, columns, strict=True):
            drawn.get(title, Axes.remove)(axes)
        first = row[0] if BASELINE in results[level] else row[2]
        first.set_title(name, fontweight="bold", loc="left")
    legend = "bands and bars: 95 % intervals; green: cures, light blue: reduces, red: harms"
    plot.supxlabel(f"errors and switch: of {BASELINE}; {legend}", fontsize="medium")
    return plot


def panels(arms: dict[str, Arm]) -> dict[str, Callable[[Axes], None]]:
    """Titles of the panels of one level, and the functions that draw them."""
    drawn: dict[str, Callable[[Axes], None]] = {}
    if clone := arms.get(BASELINE):
        drawn["Regret errors by step"] = partial(_draw_errors, clone, "regret error")
        drawn["Disagreement with the expert by step"] = partial(_draw_errors, clone, "error")
        drawn["Accumulated error"] = partial(_draw_accumulated, clone)
        if clone.numbers["learner first"]:
            drawn["One switch"] = partial(_draw_switch, clone)
    drawn["Excess"] = partial(_draw_arms, arms, "regret error excess", "excess OO - EE, regret errors an episode")
    drawn["Success"] = partial(_draw_arms, arms, "success OO", "success on its own")
    return drawn


def _draw_errors(clone: Arm, measure: str, axes: Axes) -> None:
    """The share of the running episodes that err at each step, in the four contexts."""
    highest = 0.0
    for context in CONTEXTS:
        curve, (colour, dashes) = clone.numbers[f"{measure} {context} by step"], STYLES[context]
        if context in ("EO", "OE"):  # four bands would hide each other
            curve = [replace(point, low=None, high=None) for point in curve]
        page.draw_curve(axes, range(1, len(curve) + 1), curve, colour, linestyle=dashes, label=context)
        highest = max([highest, *(point.value for point in curve if np.isfinite(point.value))])
    page.plain_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step of the episode", ylabel=f"share of {measure}s", ylim=(0, 1.3 * highest or 1))
    axes.legend(frameon=False, fontsize="small", ncols=4)


def _draw_accumulated(clone: Arm, axes: Axes) -> None:
    """AccErr(l) and the two lines between which it lies."""
    curve = clone.numbers["regret error accumulated"]
    steps = np.arange(1, len(curve) + 1)
    for power, label in ((1, "l: no error accumulates"), (2, "l²: no error is recovered")):
        axes.plot(steps, steps**power, color="#404040", linewidth=0.8, linestyle=(0, (1, power)), label=label)
    page.draw_curve(axes, steps, curve, VERMILION, label="AccErr(l)")
    page.plain_axes(axes)
    axes.set(xlabel="l, steps", ylabel="errors of OO / mean error of EE", xscale="log", yscale="log")
    axes.set_ylim(0.7, 1.2 * len(steps) ** 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize="small", loc="upper left")


def _draw_switch(clone: Arm, axes: Axes) -> None:
    """Success when learner and expert take over from each other once."""
    steps = next(iter(clone.records.values())).switch_steps
    for name, colour in (("learner first", VERMILION), ("expert first", CONTROLS[0])):
        values = np.array([(one.value, one.low, one.high) for one in clone.numbers[name]], np.float64)  # None: NaN
        reach = np.abs(values[:, 1:].T - values[:, 0])
        axes.errorbar(steps, values[:, 0], reach, color=colour, label=name, marker="o", markersize=4, capsize=2)
    page.plain_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(
        xlabel="steps before the other takes over", ylabel="success", ylim=(-0.02, 1.05), xlim=(0, 1.1 * max(steps))
    )
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_arms(arms: dict[str, Arm], number: str, label: str, axes: Axes) -> None:
    """One number of every arm with its interval, in the colour of the arm's verdict."""
    for row, arm in enumerate(arms.values()):
        colour = VERDICT_COLOURS.get(arm.verdict, CONTROLS[1]) if arm.change else CONTROLS[0]
        found = arm[number]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
        axes.plot(found.value, row, "o", color=colour, markersize=5)
    page.plain_axes(axes)
    axes.axvline(0, color="#404040", linewidth=0.8)
    axes.set(xlabel=label, yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
