"""The report on a study of exposure bias: is there any, and what corrects it?"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from agents.exposure_metrics import (
    CONTEXTS,
    CURES,
    HARMS,
    NO_VERDICT,
    NOTHING,
    REDUCES,
    Change,
    Numbers,
    Record,
    Sample,
    above,
    below,
    change,
    numbers,
)
from rlpre.compare.report import write_report
from rlpre.compare.runner import DONE, finished_runs, read_rows
from rlpre.errors import RlpreError
from rlpre.evaluation.page import (
    COLOURS,
    CONTROLS,
    Answer,
    Figure,
    Gallery,
    Page,
    Section,
    Table,
    Toned,
    draw_curve,
    percent,
    plain_axes,
    sentence,
    short_names,
    show_interval,
    signed,
)
from rlpre.evaluation.stats import FEWEST, Interval
from rlpre.files import read_json

RECORD = "contexts.npz"
BASELINE = "clone"  # the arm that the others are compared with
CLONE, CORRECTION, CONTROL = "clone", "correction", "control"  # kinds of arms; clones get no verdict
MEASURED, NOT_MEASURED = "measured", "not measured"
TONES = {CURES: "good", REDUCES: "good", HARMS: "bad", NOTHING: "soft", NO_VERDICT: "soft"}
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = COLOURS
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
    "rises and success does not. cures: OO and the excess fall, and the smaller of the two falls (removed) is at least "
    "half of the clone's excess. reduces: it is less than half. no effect: anything else, also where the clone shows no "
    "excess; none was measured, which does not mean that there is none.",
    "Intervals of 95 % are over seeds and test episodes, which all seeds share. Of twenty comparisons without an effect "
    f"one excludes 0. Fewer than {FEWEST} seeds have no interval. (?): the number is undefined in too many resamples.",
)


@dataclass(frozen=True)
class Arm:
    """The results of one arm on one level.

    Attributes:
        seeds: of the finished runs.
        dropped: episodes of all seeds that do not count, because the expert failed or lost its plan.
        minutes: mean duration of a run.
        numbers: see `agents.exposure_metrics.numbers`.
        switch_steps: where "learner first" and "expert first" switch.
        change: against the baseline; None for clones, and without common seeds.
    """

    seeds: tuple[int, ...]
    dropped: int
    minutes: float
    numbers: Numbers
    switch_steps: tuple[int, ...]
    change: Change | None

    def __getitem__(self, name: str) -> Interval:
        (number,) = self.numbers[name]
        return number

    @property
    def verdict(self) -> str:
        """On what it changed."""
        return self.change.verdict if self.change else NO_VERDICT


Results = dict[str, dict[str, Arm]]  # level -> arm


def report(directory: Path, arms: Mapping[str, str], horizons: Mapping[str, int]) -> str:
    """Reports on a study of exposure bias, as far as it has come; returns the text.

    Args:
        directory: a study of runs (level, arm, seed), each with a `Record`; receives the report.
        arms: every arm in reading order, and its kind.
        horizons: level -> steps over which errors are added up.

    Raises:
        RlpreError: if there is no finished run, or a run dropped all its episodes.
    """
    results = summarise(directory, arms, horizons)
    summary = []
    for level, each in results.items():
        for name, arm in each.items():
            for metric, points in arm.numbers.items():
                steps = [None] if len(points) == 1 else range(1, len(points) + 1)
                entries = [{"step": step, **asdict(point)} for step, point in zip(steps, points, strict=True)]
                summary += [{"task": level, "arm": name, "over": None, "metric": metric, **entry} for entry in entries]
            for metric, point in vars(arm.change).items() if arm.change else ():
                verdict = {"verdict": arm.verdict, "removed": arm.change.removed}
                summary.append(
                    {"task": level, "arm": name, "over": BASELINE, "metric": metric, **asdict(point), **verdict}
                )
    return write_report(directory, make_page(results, arms, horizons), draw(results), summary, read_rows(directory))


def summarise(directory: Path, arms: Mapping[str, str], horizons: Mapping[str, int]) -> Results:
    """The results of every arm on every level; the same records give the same numbers."""
    paths: dict[tuple[str, str], dict[int, Path]] = {}
    for run, path in finished_runs(directory).items():
        paths.setdefault((run.task, run.arm), {})[run.seed] = path
    if not paths:
        raise RlpreError(f"{directory} holds no finished run: run the study first")

    def gather(level: str, arm: str) -> Sample:
        records = {seed: Record.load(path / RECORD) for seed, path in paths[level, arm].items()}
        for seed, found in records.items():
            if not found.kept.any():
                raise RlpreError(f"{paths[level, arm][seed]} dropped all its episodes: the expert must solve {level}")
        return Sample.gather(records, horizons[level])

    results: Results = {}
    for level in horizons:
        baseline = gather(level, BASELINE) if (level, BASELINE) in paths else None
        for arm, kind in arms.items():
            if (level, arm) not in paths:
                continue
            sample, rng = gather(level, arm), np.random.default_rng(0)
            seconds = [read_json(path / DONE)["seconds"] for path in paths[level, arm].values()]
            results.setdefault(level, {})[arm] = Arm(
                sample.seeds,
                int((~sample.kept).sum()),
                float(np.mean(seconds)) / 60,
                numbers(sample, rng),
                sample.switch_steps,
                change(sample, baseline, rng) if baseline and kind != CLONE else None,
            )
    return results


def level_answer(clone: Arm | None, horizon: int) -> Answer:
    """Does the clone show exposure bias on a level?"""
    if clone is None:
        return Answer(NO_VERDICT, f"no answer, {BASELINE} has no finished run")
    excess, more, growth = (clone[f"regret error {name}"] for name in ("excess", "percent", "slope"))
    facts = (
        f"in {horizon} steps {BASELINE} makes {clone['regret error OO'].value:.2f} regret errors an episode on its own "
        f"and {clone['regret error EE'].value:.2f} teacher-forced, an excess of {show_interval(excess)}"
        f"{'' if np.isnan(more.value) else f' ({more.value:+.0f} %)'}"
        f"{'' if np.isnan(growth.value) else f' with a slope of {show_interval(growth)}'}; it succeeds in "
        f"{percent(clone['success OO'].value)} of the episodes, the expert in {percent(clone['success EE'].value)}"
    )
    if excess.low is None:
        return Answer(NO_VERDICT, f"no answer, fewer than {FEWEST} seeds say nothing about other seeds", facts)
    if above(excess):
        return Answer(MEASURED, "exposure bias is measured", facts)
    why = "it errs less on its own" if below(excess) else "the interval of the excess contains 0"
    return Answer(NOT_MEASURED, "no exposure bias is measured", f"{facts}; {why}")


def overall_answer(results: Results, arms: Mapping[str, str], horizons: Mapping[str, int]) -> Answer:
    """On how many levels is exposure bias measured, and on how many is it cured?"""
    names = short_names(results)
    found = {level: level_answer(each.get(BASELINE), horizons[level]) for level, each in results.items()}
    biased, unknown = ([level for level in found if found[level].verdict == kind] for kind in (MEASURED, NO_VERDICT))
    cures = {level: [arm for arm, one in results[level].items() if one.verdict == CURES] for level in biased}
    cured = [level for level in biased if any(arms[arm] == CORRECTION for arm in cures[level])]
    facts = [f"{' and '.join(by)} cure{'s' * (len(by) == 1)} it on {names[level]}" for level, by in cures.items() if by]
    if len(found) == 1:
        ((level, one),) = found.items()
        claim = one.claim if unknown else f"{one.claim} on {names[level]}"
        claim += f", and {'' if cured else 'not '}cured" if biased else ""
        facts = [one.facts, *facts] if one.facts else facts
    else:
        claim = f"exposure bias is measured on {len(biased) or 'none'} of {len(found)} levels"
        claim += f", and cured on {len(cured) or 'none'}" if biased else ""
        facts += [f"no answer on {', '.join(names[level] for level in unknown)}"] if unknown else []
    verdict = CURES if cured else MEASURED if biased else NO_VERDICT if unknown else NOT_MEASURED
    return Answer(verdict, claim, "; ".join(facts))


def reason(found: Change | None) -> str:
    """Why the verdict is what it is."""
    if found is None or found.verdict == NO_VERDICT:
        return f"no seed in common with {BASELINE}" if found is None else f"fewer than {FEWEST} seeds"
    reasons = {
        CURES: "at least half of the excess is removed",
        REDUCES: "less than half of the excess is removed",
        HARMS: "success falls" if below(found.success) else "it errs more on its own",
    }
    if found.verdict in reasons:
        return reasons[found.verdict]
    if found.removed is None:
        return "there is no excess to remove"
    if above(found.free):
        return "it errs more on its own, and succeeds more"
    if below(found.free):
        return "it errs less on its own, and teacher-forced too"
    if below(found.excess):
        return "the excess falls only because it errs more teacher-forced"
    return "neither its errors on its own nor the excess surely fall"


def make_page(results: Results, arms: Mapping[str, str], horizons: Mapping[str, int]) -> Page:
    """The report as a page."""
    names, answer = short_names(horizons), overall_answer(results, arms, horizons)
    missing = {names[level]: [arm for arm in arms if arm not in results.get(level, {})] for level in horizons}
    gaps = [f"{', '.join(absent)} on {level}" for level, absent in missing.items() if absent]
    judged = [arm for arm, kind in arms.items() if kind != CLONE]
    rows = [
        [f"{arm} (control)" if arms[arm] == CONTROL else arm, *(_verdict(each.get(arm)) for each in results.values())]
        for arm in judged
    ]
    verdicts = Table(["arm", *(names[level] for level in results)], rows, note=f"Against {BASELINE}.")
    sections = [Section("Verdicts", blocks=[verdicts])] if rows else []
    sections += [_level_section(names[level], results[level], horizons[level]) for level in results]
    return Page(
        "Is there exposure bias, and what corrects it?",
        f"{sentence(answer.claim)}.",
        {CURES: "good", MEASURED: "bad"}.get(answer.verdict, ""),
        [f"{sentence(answer.facts)}."] if answer.facts else [],
        [f"Without a finished run: {'; '.join(gaps)}."] if gaps else [],
        [*sections, Section("Reading the numbers", READING)],
    )


def _verdict(arm: Arm | None) -> Toned:
    return Toned(arm.verdict, TONES[arm.verdict]) if arm else Toned("no verdict", "soft")


def _level_section(name: str, arms: dict[str, Arm], horizon: int) -> Section:
    """What was measured on one level."""

    def table(title: str, columns: Mapping[str, Callable[[Arm], str | Toned]], rows: Mapping[str, Arm]) -> Table:
        return Table(
            ["arm", *columns], [[key, *(of(arm) for of in columns.values())] for key, arm in rows.items()], title
        )

    def show(number: str) -> Callable[[Arm], str]:
        return lambda arm: show_interval(arm[number])

    def shift(number: str) -> Callable[[Arm], str]:
        return lambda arm: signed(getattr(arm.change, number))

    errors = {
        "n": lambda arm: str(len(arm.seeds)),
        **{key: show(f"regret error {key}") for key in (*CONTEXTS, "excess")},
        "%": lambda arm: show_interval(arm["regret error percent"], "{:+.0f}".format),
        "interaction": show("regret error interaction"),
        "success": show("success OO"),
        "minutes": lambda arm: f"{arm.minutes:.1f}",
    }
    changes = {
        "verdict": _verdict,
        "excess": shift("excess"),
        "removed": lambda arm: "-" if arm.change.removed is None else percent(arm.change.removed),
        "OO": shift("free"),
        "EE": shift("forced"),
        "success": shift("success"),
        "why": lambda arm: reason(arm.change),
    }
    more = {
        "slope": show("regret error slope"),
        "excess alive": show("regret error excess alive"),
        "excess of disagreement": show("error excess"),
        **{f"{key} {context}": show(f"{key} {context}") for key in ("recovery", "nll") for context in ("EE", "OO")},
        "success gap": show("success gap"),
        "dropped": lambda arm: str(arm.dropped),
    }
    charts = [Figure(f"{title} on {name}", _plot(draw_panel)) for title, draw_panel in panels(arms).items()]
    judged = {key: arm for key, arm in arms.items() if arm.change}
    blocks = [
        Gallery(charts),
        table("Regret errors per episode", errors, arms),
        *([table(f"Changes against {BASELINE}", changes, judged)] if judged else []),
        table("Growth, recovery, likelihood", more, arms),
    ]
    return Section(name, [f"{sentence(str(level_answer(arms.get(BASELINE), horizon)))}"], blocks)


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
    handles: dict[str, Any] = {}
    for row, (level, name) in zip(
        plot.subplots(len(results), 4, squeeze=False), short_names(results).items(), strict=True
    ):
        drawn = panels(results[level])
        for axes, title in zip(row, columns, strict=True):
            drawn.get(title, Axes.remove)(axes)
        row[0].set_title(f"{name}: {BASELINE}", fontweight="bold", loc="left")
        handles |= {line.get_label(): line for line in row[0].get_lines()}
        if legend := row[0].get_legend():
            legend.remove()
    title = "bands and bars: 95 % intervals; green: cures, light blue: reduces, red: harms"
    plot.legend(handles=list(handles.values()), title=title, loc="outside lower center", ncols=4, frameon=False)
    return plot


def panels(arms: dict[str, Arm]) -> dict[str, Callable[[Axes], None]]:
    """Titles of the panels of one level, and the functions that draw them."""
    drawn: dict[str, Callable[[Axes], None]] = {}
    if clone := arms.get(BASELINE):
        drawn["Regret errors by step"] = partial(_draw_errors, clone, "regret error")
        drawn["Disagreement with the expert by step"] = partial(_draw_errors, clone, "error")
        drawn["Accumulated error"] = partial(_draw_accumulated, clone)
        if clone.switch_steps:
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
            curve = [Interval(point.value, None, None, point.n) for point in curve]
        draw_curve(axes, range(1, len(curve) + 1), curve, colour, linestyle=dashes, label=context)
        highest = max([highest, *(point.value for point in curve if np.isfinite(point.value))])
    plain_axes(axes)
    axes.set(xlabel="step of the episode", ylabel=f"share of {measure}s", ylim=(0, 1.3 * highest or 1))
    axes.legend(frameon=False, fontsize="small", ncols=4)


def _draw_accumulated(clone: Arm, axes: Axes) -> None:
    """AccErr(l) and the two lines between which it lies."""
    curve = clone.numbers["regret error accumulated"]
    steps = np.arange(1, len(curve) + 1)
    for power, label in ((1, "l: no error accumulates"), (2, "l²: no error is recovered")):
        axes.plot(steps, steps**power, color="#404040", linewidth=0.8, linestyle=(0, (1, power)), label=label)
    draw_curve(axes, steps, curve, VERMILION, label="AccErr(l)")
    plain_axes(axes)
    axes.set(xlabel="l, steps", ylabel="errors of OO / mean error of EE", xscale="log", yscale="log")
    axes.set_ylim(0.7, 1.2 * len(steps) ** 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize="small", loc="upper left")


def _draw_switch(clone: Arm, axes: Axes) -> None:
    """Success when learner and expert take over from each other once."""
    for name, colour in (("learner first", VERMILION), ("expert first", CONTROLS[0])):
        values = np.array([[point.value, point.low, point.high] for point in clone.numbers[name]], dtype=np.float64)
        reach = np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0)
        axes.errorbar(clone.switch_steps, values[:, 0], reach, color=colour, label=name, marker="o", capsize=2)
    plain_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="steps before the other takes over", ylabel="success", ylim=(-0.02, 1.05))
    axes.set_xlim(0, 1.1 * max(clone.switch_steps))
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_arms(arms: dict[str, Arm], number: str, label: str, axes: Axes) -> None:
    """One number of every arm with its interval, in the colour of the arm's verdict."""
    for row, arm in enumerate(arms.values()):
        colour = VERDICT_COLOURS.get(arm.verdict, CONTROLS[1]) if arm.change else CONTROLS[0]
        found = arm[number]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
        axes.plot(found.value, row, "o", color=colour, markersize=5)
    plain_axes(axes)
    axes.axvline(0, color="#404040", linewidth=0.8)
    axes.set(xlabel=label, yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
