"""The report on a study: its page, picture, summary and TensorBoard curves.

`report` does it for a comparison of agents. Other studies make a `Page` and a figure of their own and hand them to
`write_report`.
"""

import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from rlpre.compare.runner import DONE, FAILED, ROWS, STUDY, Row, Run, finished_runs, flat
from rlpre.compare.summary import (
    ALL,
    Curves,
    Metric,
    Record,
    Results,
    Tasks,
    curves,
    read_results,
    save_rows,
    summarise,
)
from rlpre.data.store import MANIFEST, FrameStore
from rlpre.errors import RlpreError
from rlpre.evaluation import page
from rlpre.evaluation.page import Answer, Cell, Figure, Gallery, Page, Section, Table, Toned, short_names, thousands
from rlpre.evaluation.stats import FEWEST, StepsRatio, seeds_to_decide
from rlpre.utils import image_grid, read_json, write_bytes, write_json

SAVED, COST, UNKNOWN, NONE = "saved", "cost", "not known", "no answer"
TONES = {SAVED: "good", COST: "bad"}
COLUMNS = 3  # of panels in the picture, at most
HALF, THIRD = (5.2, 3.4), (3.8, 2.4)  # inches of figures two and three in a line of the page
RUN, CHECKPOINT, FRAMES, ENCODERS = "run.json", "config.json", "frames", "encoders"
STRIP = 12  # frames that a page shows of an environment
MOST_BYTES = 500_000  # of a film
BANDS = (
    "{}: IQM and 95 % interval (without 'Ignore outliers in chart scaling', bands are whole)"  # TensorBoard's option
)

READING = """\
Curves, areas and final returns are interquartile means over runs; brackets are 95 % intervals. The area is the mean \
height of the learning curve. Steps are the mean to the first evaluation of at least {1}; a run that never gets there \
counts as its budget, so that its ratio is only a bound (>=, <=), or holds within the budget only (?); one that is \
there before its first step counts the steps between two evaluations. {0.baseline} / arm is how many times the arm's \
steps {0.baseline} needs: above 1 the arm saves steps. Over several tasks it is the geometric mean. P(better) is the \
probability that a run of the arm has a larger area than one of {0.baseline}. Frames are the offline ones, labels the \
actions that a clone learned from. Minutes are the wall-clock of a run. Fewer than 3 runs have no interval, nor has a \
ratio of runs that are all equal. Of several controls, a task's table shows the ratio over the best."""


def report(directory: Path, sections: Sequence[Section] = ()) -> str:
    """Compares the arms of a study, as far as it has come, and writes the files of `write_report`.

    Args:
        directory: a study, see `rlpre.compare.summary.read_results`. It may hold frame stores, ``frames/<name>``, and
            runs of pretraining, whose task is "encoders". A run may hold ``run.json`` (versions, commit) and a GIF.
        sections: further parts of the page, shown after the tasks.

    Returns:
        The page for a terminal.

    Raises:
        RlpreError: if the directory holds no finished run or no metric, or its runs do not fit together.
    """
    results = read_results(directory)
    metric, tasks = results.metric, results.tasks
    by_task = answers(results)
    lead = next(iter(by_task.values()))
    content = Page(
        question=f"How many {metric.unit} did {metric.cause} save?",
        answer=f"{page.sentence(lead.claim)}.",
        lead=headroom(results, next(iter(by_task))),
        tone=TONES.get(lead.verdict, ""),
        facts=[f"{page.sentence(lead.facts)}."] if lead.facts else [],
        notices=_missing(results),
        sections=[
            *([_all_tasks(results, by_task)] if len(tasks) > 1 else []),
            *(_task(results, task, by_task, _films(directory, task)) for task in tasks),
            *sections,
            *_background(directory),
            Section("Reading the numbers", [READING.format(metric, metric.goal())]),
        ],
    )
    summary = [record.flat() for record in results.records]
    return write_report(directory, content, draw_curves(tasks, metric), summary, results.rows)


def write_report(
    directory: Path,
    content: Page,
    figure: matplotlib.figure.Figure,
    summary: Sequence[Mapping[str, Any]],
    rows: Sequence[Row] = (),
) -> str:
    """Writes the report of any study.

    Args:
        directory: receives ``report.html`` (the page), ``report.png`` (the figure), ``summary.json``, ``rows.json``
            (every row of the study in one file) and TensorBoard events (``tensorboard/``, see `log_rows`).
        content: the report; failed and unfinished runs of the directory and the provenance of the others are added.
        figure: what the page shows, as one picture.
        summary: the results as flat records; of numbers 6 digits are written, null for those that are not finite.
        rows: what the study measured.

    Returns:
        The page for a terminal.
    """
    content = replace(content, notices=[*_unfinished(directory), *content.notices], provenance=_provenance(directory))
    answer = {"question": content.question, "answer": content.answer, "facts": list(content.facts)}
    records = [{name: _number(value) for name, value in record.items()} for record in summary]
    write_json(directory / "summary.json", {**answer, "records": records})
    write_bytes(directory / "report.png", page.as_png(figure))
    page.write_html(content, directory / "report.html")
    if rows:
        save_rows(rows, directory / ROWS)
        log_rows(rows, directory / "tensorboard")
    return page.as_text(content)


def log_rows(rows: Sequence[Row], directory: Path) -> None:
    """Writes the curves of rows as TensorBoard events, which replace those of an earlier report.

    Every arm is a TensorBoard run with the scalars ``compare/<task>/<metric>``, IQM over seeds, and the ends of its
    interval, ``interval/<task>/<metric>_low`` and ``..._high``. The custom-scalars tab shows them as curves with bands.
    """
    shutil.rmtree(directory, ignore_errors=True)
    metrics = dict.fromkeys(row.metric for row in rows if row.step is not None)
    measured = {(task, metric): arms for metric in metrics for task, arms in curves(rows, metric).items()}
    names = short_names(dict.fromkeys(task for task, _ in measured))
    layout: dict[str, dict[str, list[Any]]] = {}
    for task, metric in measured:
        layout.setdefault(BANDS.format(metric), {})[names[task]] = ["Margin", list(_tags(task, metric))]
    for place, arm in enumerate(dict.fromkeys(arm for arms in measured.values() for arm in arms)):
        with SummaryWriter(str(directory / arm)) as board:
            if place == 0:  # TensorBoard would list a directory for the layout alone as another run
                board.add_custom_scalars(layout)
            for (task, metric), arms in measured.items():
                for step, point in zip(arms[arm].steps, arms[arm].points, strict=True) if arm in arms else ():
                    for tag, value in zip(_tags(task, metric), (point.value, point.low, point.high), strict=True):
                        if value is not None:
                            board.add_scalar(tag, value, step)


def _tags(task: str, metric: str) -> tuple[str, str, str]:
    """Of a curve, and of the ends of its interval."""
    name = f"{task}/{metric}"
    return f"compare/{name}", f"interval/{name}_low", f"interval/{name}_high"


def verdict(ratio: StepsRatio) -> str:
    """What the interval of a ratio says about 1; a bound leaves one of its ends open."""
    if ratio.ratio.low is None or ratio.ratio.high is None:
        return NONE if ratio.ratio.n < FEWEST else UNKNOWN
    if ratio.ratio.low > 1 and ratio.bound != "<=":
        return SAVED
    if ratio.ratio.high < 1 and ratio.bound != ">=":
        return COST
    return UNKNOWN


def headroom(results: Results, task: str) -> str:
    """How many times the oracle's steps the baseline needs on a task, or on `ALL`; empty without runs of both.

    The oracle learns with a perceptron. Where an encoder suits the task better, as a convolution may, it is no bound.
    """
    metric = results.metric
    record = results.record(task, metric.oracle, metric.baseline) if metric.oracle else None
    if record is None or record.ratio is None:
        return ""
    ratio, scratch, goal = record.ratio, metric.baseline, metric.goal(task)
    others = {arm: results.record(task, arm, scratch) for arm in metric.arms if arm not in metric.labels}
    ratios = {arm: each.ratio.ratio.value for arm, each in others.items() if each and each.ratio}
    fastest = max(ratios, key=lambda arm: ratios[arm])
    most = "an encoder can hardly save more than that here"
    if ratio.ratio.value < 1:
        most = "this oracle learns more slowly than from pixels, so it does not say what an encoder can save"
    elif ratios[fastest] > ratio.ratio.value:
        most = f"more can be saved, as the arm {fastest!r} shows"
    if not ratio.known:
        return f"No run of {scratch} or the oracle reached {goal}: more steps would tell what can be saved."
    least, end = {
        "": ("", most),
        "<=": ("at most ", f"not every run of the oracle reached {goal}, so it does not say what an encoder can save"),
        ">=": ("at least ", f"not every run of {scratch} reached {goal}, so that more can be saved here"),
        "?": ("", f"only within the budget, for some runs of both never reached {goal}"),
    }[ratio.bound]
    times = page.show_ratio(replace(ratio, bound=ratio.bound.strip("?"))).lstrip("<>=")
    return page.sentence(f"{scratch} needs {least}{times} times the steps of the oracle: {end}.")


def answers(results: Results) -> dict[str, Answer]:
    """The answers by task; with several tasks the answer over all of them comes first, as `ALL`."""
    by_task = {task: _answer(results, task) for task in results.tasks}
    return by_task if len(by_task) == 1 else {ALL: _overall_answer(results, by_task), **by_task}


def _answer(results: Results, task: str) -> Answer:
    metric, arms = results.metric, results.tasks[task]
    baseline = results.record(task, metric.baseline, None)
    treated = results.record(task, metric.answer, metric.baseline)
    if baseline is None or treated is None or treated.ratio is None:
        missing = [arm for arm in (metric.baseline, metric.answer) if arm not in arms]
        return Answer(NONE, f"no answer, there is no finished run of {' or '.join(missing)}")
    budget = thousands(arms[metric.answer].steps[-1])
    if not treated.ratio.known:
        both = f"no run of {metric.baseline} or {metric.answer}"
        claim = f"no answer, {both} reached {metric.goal(task)} in {budget} steps"
        return Answer(NONE, claim, _what_is_known(results, baseline, treated))
    slow, fast = (record.steps.value for record in (baseline, treated) if record.steps)
    facts = (
        f"to reach {metric.goal(task)}, {metric.baseline} needs {page.show_ratio(treated.ratio)} times the "
        f"{metric.unit.split()[-1]} of {metric.answer} ({thousands(slow)} and {thousands(fast)}; "
        f"{_reached(baseline)} and {_reached(treated)} runs "
        f"reach it in {budget})"
    )
    paid = metric.arms[metric.answer] - metric.arms[metric.baseline]
    facts += f", after {thousands(paid)} offline frames" if paid > 0 else ""
    labels = metric.labels.get(metric.answer, 0)
    facts += f"; the clone learned from {thousands(labels)} labels" if labels else ""
    outcome = verdict(treated.ratio)
    least = "at least " if treated.ratio.bound in (">=", "<=") else ""
    claim = f"{metric.cause} {outcome} {least}{thousands(abs(slow - fast))} {metric.unit}"
    if outcome == NONE:
        claim = f"no answer, fewer than {FEWEST} runs of an arm allow no interval"
    elif treated.ratio.ratio.low is None:  # also if they are equal by luck, so equal runs prove nothing
        least = {">=": "at least ", "<=": "at most "}.get(treated.ratio.bound, "")
        claim = f"every run of {metric.baseline} needs {least}{treated.ratio.ratio.value:.3g} times the steps of every "
        claim += f"run of {metric.answer}, but runs that are all equal allow no interval"
    elif outcome == UNKNOWN:
        claim = f"it is not known whether {metric.cause} saves {metric.unit}"
        facts += f"; {_what_is_known(results, baseline, treated)}; {_seeds(treated.ratio)}"
    return Answer(outcome, claim, facts)


def _what_is_known(results: Results, baseline: Record, treated: Record) -> str:
    """What the runs say where steps to the threshold do not decide."""
    times = [results.minutes(treated.task, record.arm) for record in (treated, baseline)]
    better = page.show_interval(treated.better) if treated.better else "-"
    return (
        f"what is known: {treated.arm} against {baseline.arm} has an area of {page.show_interval(treated.area)} "
        f"against {page.show_interval(baseline.area)}, is better with probability {better}, and takes {times[0]} "
        f"against {times[1]} minutes a run"
    )


def _seeds(ratio: StepsRatio) -> str:
    """How many seeds would decide, and how to add them."""
    if (ratio.bound, ratio.ratio.value > 1) in ((">=", False), ("<=", True)):
        return "the runs that missed the threshold leave it open: more steps would decide, more seeds would not"
    needed = seeds_to_decide(ratio.ratio)
    if needed is None:
        return "no number of seeds up to 1,000 would decide at this ratio"
    return f"about {needed} seeds would decide if the ratio stays so: run the same again with seeds={needed}"


def _overall_answer(results: Results, by_task: Mapping[str, Answer]) -> Answer:
    """On how many tasks steps were saved, on which, and the ratio over all tasks."""
    metric, names = results.metric, short_names(by_task)
    where: dict[str, list[str]] = {kind: [] for kind in (SAVED, COST, UNKNOWN, NONE)}
    for task, answer in by_task.items():
        where[answer.verdict].append(names[task])
    facts = "; ".join(f"{kind} on {', '.join(on)}" for kind, on in where.items() if on)
    overall = results.record(ALL, metric.answer, metric.baseline)
    ratio = overall.ratio if overall else None
    if ratio and ratio.known:
        times = page.show_ratio(replace(ratio, bound=ratio.bound.strip("?")))
        within = ", within the budgets," if ratio.bound == "?" else ""
        facts += f"; to reach {metric.goal()} on all tasks, {metric.baseline} needs {times} times the steps"
        facts += f"{within} of {metric.answer}"
    if len(where[NONE]) == len(by_task):
        return Answer(NONE, f"no answer on any of {len(by_task)} tasks", facts)
    claim = f"{metric.cause} saved {metric.unit} on {len(where[SAVED]) or 'none'} of {len(by_task)} tasks"
    claim += f" and cost steps on {len(where[COST])}" if where[COST] else ""
    return Answer(verdict(ratio) if ratio else NONE, claim, facts)


def _all_tasks(results: Results, answers: Mapping[str, Answer]) -> Section:
    """The answer on every task, then every arm over all tasks."""
    metric, names = results.metric, short_names(results.tasks)
    overs = metric.compared_with(metric.answer)
    rows: list[list[Cell]] = []
    verdicts: dict[str, list[str]] = {over: [] for over in overs}
    for task in results.tasks:
        records = {over: results.record(task, metric.answer, over) for over in overs}
        for over, record in records.items():
            verdicts[over] += [verdict(record.ratio)] if record and record.ratio else []
        own = next(filter(None, records.values()), None)
        answer = Toned(page.sentence(answers[task].claim), TONES.get(answers[task].verdict, ""))
        rows.append([names[task], *map(_ratio, records.values()), _reached(own) if own else "-", answer])
    won = [f"{each.count(SAVED)} won, {each.count(COST)} lost of {len(each)}" for each in verdicts.values()]
    rows.append(["all", *won, "", ""])
    head = ["task", *(f"{over} / {metric.answer}" for over in overs), "reached", "answer"]
    note = f"{metric.answer}, to a return of {metric.goal()}. Won and lost: the interval excludes 1."
    everywhere = {record.arm for record in results.arms(ALL)}
    partial = [arm for arm in metric.arms if arm not in everywhere]
    text = [f"Not on every task yet: {', '.join(partial)}."] if partial else []
    return Section("Every task", text, [Table(head, rows, note=note), _arms_table(results, ALL)])


def _task(results: Results, task: str, answers: Mapping[str, Answer], films: Mapping[str, Figure]) -> Section:
    """One task: curves and ratios, the table of arms, each arm against the baseline, films."""
    metric, arms = results.metric, results.tasks[task]
    text = [f"{task}, {thousands(next(iter(arms.values())).steps[-1])} {metric.unit} a run."]
    if len(answers) > 1:
        text += filter(None, [headroom(results, task), page.sentence(str(answers[task]))])
    overview = matplotlib.figure.Figure(figsize=HALF, layout="constrained")
    _draw_overview(panel := overview.subplots(), arms, metric, task)
    panel.legend(frameon=False, fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    against = []
    for arm in arms:
        if arm != metric.baseline:
            figure = matplotlib.figure.Figure(figsize=THIRD, layout="constrained")
            _draw_against_baseline(figure.subplots(), arm, arms, metric, task)
            against.append(Figure(arm, figure))
    pair = [Figure("Learning curves: IQM over runs", overview)]
    if ratios := draw_ratios(results, task):
        pair.append(Figure(f"Steps of {metric.baseline} / steps of the arm: above 1 it saves steps", ratios))
    blocks: list[Table | Figure | Gallery] = [Gallery(pair), _arms_table(results, task)]
    if metric.thresholds:
        beside = replace(metric, thresholds={})
        others = Results(beside, results.rows, results.tasks, summarise(results.tasks, beside))
        blocks.append(replace(_arms_table(others, task), title=f"To a return of {metric.threshold:g} instead"))
    if against:
        note = "Thick: IQM over runs; thin: runs; band: 95 % interval; dotted: threshold."
        blocks.append(Gallery(against, f"Each arm against {metric.baseline}", note))
    if films:
        blocks.append(Gallery([films[arm] for arm in arms if arm in films], "Final policies"))
    return Section(short_names(results.tasks)[task], text, blocks)


def _arms_table(results: Results, task: str) -> Table:
    """One row per arm; columns without any content are left out."""
    metric, records, alone = results.metric, results.arms(task), task != ALL
    columns: dict[str, list[Cell]] = {
        "arm": [Toned(record.arm, "strong" * (record.arm == metric.answer)) for record in records]
    }
    for over in filter(None, (metric.baseline, results.best_control(task))):
        columns[f"{over} / arm"] = [_ratio(results.record(task, record.arm, over)) for record in records]
    columns[f"{metric.unit.split()[-1]} to {metric.goal(task)}"] = [
        page.show_interval(record.steps, thousands, ">=" * (record.reached < record.n)) if record.steps else "-"
        for record in records
    ]
    if alone:
        columns["reached"] = [Toned(_reached(record), "bad" * (record.reached < record.n)) for record in records]
    else:
        columns["seeds"] = [str(record.n) for record in records]
    columns["P(better)"] = [
        page.show_interval(record.better) if record.better and record.over == metric.baseline else "-"
        for record in records
    ]
    columns["area"] = [page.show_interval(record.area) for record in records]
    columns["start return"] = [page.show_interval(record.start) if record.start else "-" for record in records]
    columns["final return"] = [page.show_interval(record.final) for record in records]
    columns["frames"] = [thousands(metric.arms[record.arm]) if metric.arms[record.arm] else "-" for record in records]
    columns["labels"] = [thousands(each) if (each := metric.labels.get(record.arm)) else "-" for record in records]
    columns["minutes"] = [results.minutes(task, record.arm) for record in records]
    filled = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells)}
    rows = list(zip(*filled.values(), strict=True))
    return Table(list(filled), rows, "Arms" if alone else "All arms over all tasks")


def _ratio(record: Record | None) -> Cell:
    if record is None or record.ratio is None:
        return "-"
    return Toned(page.show_ratio(record.ratio), TONES.get(verdict(record.ratio), ""))


def _reached(record: Record) -> str:
    return f"{record.reached}/{record.n}"


def _missing(results: Results) -> list[str]:
    missing = []
    for task, name in short_names(results.tasks).items():
        if arms := [arm for arm in results.metric.arms if arm not in results.tasks[task]]:
            missing.append(f"{', '.join(arms)} on {name}")
    return [f"Arms without a finished run: {'; '.join(missing)}."] if missing else []


def draw_curves(tasks: Tasks, metric: Metric) -> matplotlib.figure.Figure:
    """The learning curves as one picture.

    A panel per task shows the IQM of every arm. If there is one task alone, panels of each arm against the baseline
    follow, with every run and the 95 % bands: bands of more than two arms hide each other. Arms keep their colour from
    study to study as long as they keep their place in ``metric.arms``.
    """
    names, ((_, only), *others) = short_names(tasks), tasks.items()
    each = [] if others else [arm for arm in only if arm != metric.baseline]
    count = len([*tasks, *each])
    columns = min(COLUMNS, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    figure = matplotlib.figure.Figure(figsize=(4.4 * columns, 1.2 + 3.2 * rows), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for task, arms in tasks.items():
        _draw_overview(panel := panels.pop(0), arms, metric, task)
        panel.set_title(names[task], fontweight="bold")
    for arm in each:
        _draw_against_baseline(panel := panels.pop(0), arm, only, metric, next(iter(tasks)))
        panel.set_title(arm, color=style(arm, metric)[0])
    for empty in panels:
        empty.remove()
    lines = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    shown = [arm for arm in metric.arms if arm in lines]
    title = "thick: IQM over runs; thin: runs; band: 95 % interval; dotted: threshold" if each else "IQM over runs"
    figure.legend(
        [lines[arm] for arm in shown], shown, title=title, loc="outside lower center", ncols=columns, frameon=False
    )
    return figure


def draw_ratios(results: Results, task: str) -> matplotlib.figure.Figure | None:
    """The ratios over the baseline on a logarithmic axis, open intervals up to its end; None if no run reached."""
    ratios = {
        record.arm: record.ratio
        for record in reversed(results.arms(task))
        if record.over == results.metric.baseline and record.ratio and record.ratio.known
    }
    if not ratios:
        return None
    ends = [end for ratio in ratios.values() for end in (ratio.ratio.value, ratio.ratio.low, ratio.ratio.high) if end]
    reach = 1.1 * float(np.clip(max(max(end, 1 / end) for end in ends), 2, 20))
    figure = matplotlib.figure.Figure(figsize=HALF, layout="constrained")
    panel = figure.subplots()
    panel.axvline(1, color="#404040", linewidth=0.8)
    for place, (arm, ratio) in enumerate(ratios.items()):
        colour, _ = style(arm, results.metric)
        low = 1 / reach if ratio.bound == "<=" else ratio.ratio.low or ratio.ratio.value
        high = reach if ratio.bound == ">=" else ratio.ratio.high or ratio.ratio.value
        panel.plot([low, high], [place, place], color=colour, linewidth=2)
        panel.plot(ratio.ratio.value, place, "o", color=colour)
    panel.set_yticks(range(len(ratios)), list(ratios))
    panel.set(xscale="log", xlim=(1 / reach, reach), ylim=(-0.6, len(ratios) - 0.4), xlabel="← costs · saves →")
    panel.set_xticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / reach <= tick <= reach])
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    page.plain_axes(panel)
    return figure


def style(arm: str, metric: Metric) -> tuple[str, str]:
    """Colour and dashes of an arm, by its place among the controls or among the pretrained arms."""
    controls = [name for name, frames in metric.arms.items() if frames == 0 or name == metric.baseline]
    controls.sort(key=lambda name: name != metric.baseline)
    if arm in controls:
        place = controls.index(arm)
        turn = place + place // len(page.CONTROLS)  # of nine controls no two look alike
        return page.CONTROLS[place % len(page.CONTROLS)], page.DASHES[turn % len(page.DASHES)]
    place = [name for name in metric.arms if name not in controls].index(arm)
    return page.COLOURS[place % len(page.COLOURS)], page.DASHES[place // len(page.COLOURS) % len(page.DASHES)]


def _draw_overview(panel: Axes, arms: Mapping[str, Curves], metric: Metric, task: str) -> None:
    """The IQM of every arm on one task."""
    _frame(panel, arms, metric, task)
    for arm, curve in arms.items():
        colour, dashes = style(arm, metric)
        values = [point.value for point in curve.points]
        panel.plot(curve.steps, values, color=colour, linestyle=dashes, linewidth=2, label=arm)


def _draw_against_baseline(panel: Axes, arm: str, arms: Mapping[str, Curves], metric: Metric, task: str) -> None:
    """One arm and the baseline on one task, with every run and the bands."""
    _frame(panel, arms, metric, task)
    for name in (metric.baseline, arm):
        if name in arms:
            colour, dashes = style(name, metric)
            panel.plot(arms[name].steps, arms[name].values.T, color=colour, linewidth=0.7, alpha=0.5)
            page.draw_curve(panel, arms[name].steps, arms[name].points, colour, linestyle=dashes, linewidth=2)


def _frame(panel: Axes, arms: Mapping[str, Curves], metric: Metric, task: str) -> None:
    aim = metric.aim(task)
    values = np.concatenate([curve.values.ravel() for curve in arms.values()])
    low, high = min(values.min(), aim), max(values.max(), aim)
    margin = 0.05 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)  # of the runs, not of the bands, which are wide with few runs
    panel.set_xlim(0, max(curve.steps[-1] for curve in arms.values()))
    panel.axhline(aim, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set(xlabel=metric.unit, ylabel="evaluation return")
    page.plain_axes(panel)


def _number(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _unfinished(directory: Path) -> list[str]:
    """What a reader must know first: how many runs of a study are unfinished, and which ones failed with what error."""
    markers = sorted(directory.rglob(FAILED))
    failed = [f"{marker.parent.relative_to(directory)}: {read_json(marker)['error']}" for marker in markers]
    runs = [path for path in directory.rglob("seed-*") if path.is_dir()]
    unfinished = sum(not (path / DONE).exists() and not (path / FAILED).exists() for path in runs)
    lines = [f"Unfinished runs: {unfinished}. This is as far as the study has come."] if unfinished else []
    return [*lines, *([f"Failed runs: {len(failed)}.", *failed] if failed else [])]


def _provenance(directory: Path) -> page.Provenance:
    """What the finished runs of a study say about their making."""
    versions: dict[str, None] = {}
    commits: dict[str, None] = {}
    for run in finished_runs(directory).values():
        facts = read_json(run / RUN) if (run / RUN).exists() else {}
        versions |= {f"{package} {version}": None for package, version in facts.get("versions", {}).items()}
        if facts.get("commit"):
            commits[facts["commit"] + (" with changes" if facts.get("dirty") else "")] = None
    return page.Provenance(list(versions), list(commits), flat(read_json(directory / STUDY)))


def _films(directory: Path, task: str) -> dict[str, Figure]:
    """By arm the film (GIF) of its first seed that has one; of one that is too large only the size."""
    figures: dict[str, Figure] = {}
    for run, path in finished_runs(directory).items():
        for film in sorted(path.glob("*.gif"))[:1] if run.task == task and run.arm not in figures else ():
            large = film.stat().st_size > MOST_BYTES
            note = f"{film.stat().st_size / 1e6:.1f} MB, too large for this page" if large else ""
            figures[run.arm] = Figure(f"{run.arm}, seed {run.seed}", b"" if large else film.read_bytes(), note)
    return figures


def _background(directory: Path) -> list[Section]:
    """The offline frames and the pretrained encoders, if any; damaged files are no reason to withhold the results."""
    sections = []
    for title, make in (("Offline frames", _frames), ("Pretraining", _pretraining)):
        try:
            text, blocks = make(directory)
        except RlpreError as error:
            text, blocks = [f"Not known: {error}."], []
        sections += [Section(title, text, blocks)] if text or blocks else []
    return sections


def _frames(directory: Path) -> tuple[list[str], list[Table | Figure]]:
    blocks: list[Table | Figure] = []
    for manifest in sorted((directory / FRAMES).glob(f"*/{MANIFEST}")):
        store = FrameStore.open(manifest.parent)
        spec = store.manifest["spec"]
        tasks, names = store.column("task"), short_names(store.tasks)
        rows = {name: np.flatnonzero(tasks == number) for number, name in enumerate(store.tasks)}
        note = (
            f"{len(store):,} frames, of which {store.distinct:,} are distinct; {page.percent(store.unchanged)} of the "
            f"transitions change nothing. Behaviour: {spec.get('behaviour') or spec.get('policy') or 'not recorded'}."
        )
        counts = [[name, f"{len(places):,}"] for name, places in rows.items()]
        blocks.append(Table(["environment", "frames"], counts, store.path.name, note))
        blocks += [Figure(names[name], _strip(store, places)) for name, places in rows.items() if len(places)]
    return [], blocks


def _strip(store: FrameStore, rows: np.ndarray) -> bytes:
    """Different frames, evenly spread over ``rows``, side by side as PNG."""
    _, first = np.unique(store.ids[rows], return_index=True)
    chosen = np.sort(first)[np.linspace(0, len(first) - 1, min(STRIP, len(first))).astype(int)]
    picture = image_grid(torch.from_numpy(store.frames(rows[chosen])), len(chosen))
    content = io.BytesIO()
    Image.fromarray((255 * picture).byte().permute(1, 2, 0).numpy()).save(content, format="PNG")
    return content.getvalue()


def _pretraining(directory: Path) -> tuple[list[str], list[Table]]:
    """The probes of each encoder; a score below that of fresh weights is marked."""
    facts: dict[Run, dict[str, Any]] = {}
    for run, path in finished_runs(directory).items():
        if run.task == ENCODERS and (fact := read_json(path / CHECKPOINT).get("pretraining")):
            facts[run] = {"probes": {}, "control": {}, **fact, "seconds": read_json(path / DONE)["seconds"]}
    if not facts:
        return [], []
    labels = list(dict.fromkeys(label for fact in facts.values() for label in (*fact["probes"], *fact["control"])))
    rows: list[list[Cell]] = []
    for run, fact in facts.items():
        numbers = [f"{fact[name]:,}" if name in fact else "-" for name in ("steps", "batch")]
        rows.append([run.arm, str(run.seed), *numbers, f"{fact['seconds']:.0f}"])
        for label in labels:
            score, fresh = (fact[kind].get(label, math.nan) for kind in ("probes", "control"))
            shown = f"{score:.2f}" + ("" if math.isnan(fresh) else f" ({fresh:.2f})")
            rows[-1].append("-" if math.isnan(score) else Toned(shown, "bad" if score < fresh else ""))
    probes = "Linear probes: what can be read from the frozen features (balanced accuracy; R² for quantities); in "
    text = [f"{probes}brackets the same for fresh weights."] if labels else []
    if len({run.arm for run in facts}) == len(facts):
        text.append("One encoder was pretrained per objective: intervals span seeds of training, not of pretraining.")
    return text, [Table(["objective", "seed", "updates", "batch", "seconds", *labels], rows)]
