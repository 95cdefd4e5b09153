"""The report on a study: its page, picture, summary and TensorBoard curves.

`report` does it for a comparison of agents. Other studies make a `Page` and a figure of their own and hand them to
`write_report`.
"""

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter
from torch.utils.tensorboard import SummaryWriter

from rlpre.compare.background import films, notices, pretraining_sections, read_provenance
from rlpre.compare.runner import ROWS, Row, read_study
from rlpre.compare.summary import (
    ALL,
    RETURN,
    Metric,
    Record,
    Tasks,
    curves,
    minutes,
    save_rows,
    study_rows,
    summarise,
)
from rlpre.errors import RlpreError
from rlpre.evaluation.page import (
    COLOURS,
    CONTROLS,
    DASHES,
    Answer,
    Cell,
    Figure,
    Gallery,
    Page,
    Section,
    Table,
    Toned,
    as_png,
    as_text,
    draw_curve,
    plain_axes,
    sentence,
    short_names,
    show_interval,
    show_ratio,
    thousands,
    write_html,
)
from rlpre.evaluation.stats import FEWEST, StepsRatio
from rlpre.files import write_bytes, write_json

SAVED, COST, UNKNOWN, NONE = "saved", "cost", "not known", "no answer"
TONES = {SAVED: "good", COST: "bad"}
COLUMNS = 3  # of panels in the picture, at most
PAGE, PICTURE, SUMMARY, BOARD = "report.html", "report.png", "summary.json", "tensorboard"

READING = """\
Curves, areas and final returns are interquartile means over runs; brackets are 95 % intervals. The area is the mean \
height of the learning curve. Steps are the mean to the first evaluation of at least {threshold:g}; a run that never \
gets there counts as its budget, so that its ratio is only a bound (>=, <=), or holds within the budget only (?). \
{baseline} / arm is how many times the arm's steps {baseline} needs: above 1 the arm saves steps. Over several tasks \
it is the geometric mean. P(better) is the probability that a run of the arm has a larger area than one of {baseline}. \
Frames are the offline ones. Minutes are the wall-clock of a run. Fewer than 3 runs have no interval."""

Records = Mapping[tuple[str, str, str | None], Record]  # by task, arm and over


def report(directory: Path, sections: Sequence[Section] = ()) -> str:
    """Compares the arms of a study, as far as it has come, and writes the files of `write_report`.

    Args:
        directory: a study (see `rlpre.compare.runner`) whose ``study.json`` holds a `Metric` under "metric", and whose
            runs measured "return" by steps. Beside it ``frames`` (frame stores) and ``encoders`` (runs of pretraining)
            are looked for. A run may hold ``run.json`` (versions and commit) and films (GIF). Instead of runs it may
            hold the ``rows.json`` of a published study.
        sections: of the page, shown after the tasks.

    Returns:
        The page for a terminal.

    Raises:
        RlpreError: if the directory holds no finished run or no metric, or its runs do not fit together.
    """
    configuration = read_study(directory)
    if "metric" not in configuration:
        raise RlpreError(f"{directory}/study.json has no metric: put one in the configuration before the study runs")
    metric = Metric(**configuration["metric"])
    rows = study_rows(directory)
    tasks = curves(rows)
    every = summarise(tasks, metric)
    records = {(record.task, record.arm, record.over): record for record in every}
    first = answers(tasks, records, metric)
    lead, home = next(iter(first.values())), directory.resolve().parent
    duration = minutes(rows)
    page = Page(
        question=f"How many environment steps did {metric.cause} save?",
        answer=f"{sentence(lead.claim)}.",
        tone=TONES.get(lead.verdict, ""),
        facts=[f"{sentence(lead.facts)}."] if lead.facts else [],
        notices=notices(directory, home) + _missing(tasks, metric),
        sections=[
            *([_all_tasks(tasks, records, first, metric)] if len(tasks) > 1 else []),
            *(_task(directory, task, tasks, records, first[task], metric, duration) for task in tasks),
            *sections,
            *pretraining_sections(home),
            Section("Reading the numbers", [READING.format(threshold=metric.threshold, baseline=metric.baseline)]),
        ],
        provenance=read_provenance(directory),
    )
    return write_report(directory, page, draw_curves(tasks, metric), [record.flat() for record in every], rows)


def write_report(
    directory: Path,
    page: Page,
    figure: matplotlib.figure.Figure,
    summary: Sequence[Mapping[str, Any]],
    rows: Sequence[Row] = (),
) -> str:
    """Writes a study's report.

    Args:
        directory: receives ``report.html`` (the page), ``report.png`` (the figure), ``summary.json``, ``rows.json``
            (every row of the study in one file) and TensorBoard events (``tensorboard/``, see `log_rows`).
        page: the report.
        figure: what the page shows, as one picture.
        summary: the results as flat records; a number that is not finite becomes null.
        rows: what the study measured.

    Returns:
        The page for a terminal.
    """
    records = [{name: _known(value) for name, value in record.items()} for record in summary]
    answer = {"question": page.question, "answer": page.answer, "facts": list(page.facts)}
    write_json(directory / SUMMARY, {**answer, "records": records})
    write_bytes(directory / PICTURE, as_png(figure))
    write_html(page, directory / PAGE)
    if rows:
        save_rows(rows, directory / ROWS)
        log_rows(rows, directory / BOARD)
    return as_text(page)


def log_rows(rows: Sequence[Row], directory: Path) -> None:
    """Writes the curves of rows as TensorBoard events, which replace those of an earlier report.

    Every arm is a TensorBoard run with the scalars ``compare/<task>/<metric>``, IQM over seeds, and its interval's ends
    ``.._low`` and ``.._high``. The custom-scalars tab shows them as curves with bands.
    """
    shutil.rmtree(directory, ignore_errors=True)
    metrics = dict.fromkeys(row.metric for row in rows if row.step is not None)
    measured = {(task, metric): arms for metric in metrics for task, arms in curves(rows, metric).items()}
    names = short_names(dict.fromkeys(task for task, _ in measured))
    ends = ("", "_low", "_high")
    layout: dict[str, dict[str, list[Any]]] = {}
    for task, metric in measured:
        tags = [f"compare/{task}/{metric}{end}" for end in ends]
        layout.setdefault(names[task], {})[f"{names[task]}: {metric}, IQM and 95 % interval"] = ["Margin", tags]
    for arm in dict.fromkeys(row.arm for row in rows):
        with SummaryWriter(str(directory / arm)) as board:
            if layout:  # the tab gathers the layouts of all runs: one is enough
                board.add_custom_scalars(layout)
                layout = {}
            for (task, metric), arms in measured.items():
                for step, point in zip(arms[arm].steps, arms[arm].points, strict=True) if arm in arms else ():
                    for end, value in zip(ends, (point.value, point.low, point.high), strict=True):
                        if value is not None:
                            board.add_scalar(f"compare/{task}/{metric}{end}", value, step)


def answers(tasks: Tasks, records: Records, metric: Metric) -> dict[str, Answer]:
    """The answers by task; with several tasks the answer over all of them comes first, as `ALL`."""
    found = {task: _answer(task, tasks, records, metric) for task in tasks}
    return found if len(found) == 1 else {ALL: _overall_answer(found, records, metric), **found}


def verdict(ratio: StepsRatio) -> str:
    """What the interval of a ratio says about 1; a bound leaves one of its ends open."""
    if ratio.ratio.low is None or ratio.ratio.high is None:
        return NONE
    if ratio.ratio.low > 1 and ratio.bound != "<=":
        return SAVED
    if ratio.ratio.high < 1 and ratio.bound != ">=":
        return COST
    return UNKNOWN


def _answer(task: str, tasks: Tasks, records: Records, metric: Metric) -> Answer:
    missing = [arm for arm in (metric.baseline, metric.answer) if arm not in tasks[task]]
    if missing:
        return Answer(NONE, f"no answer, {' and '.join(missing)} has no finished run")
    treated, baseline = records[task, metric.answer, metric.baseline], records[task, metric.baseline, None]
    saved, budget = treated.ratio, thousands(tasks[task][metric.answer].steps[-1])
    if saved is None or baseline.reached + treated.reached == 0:
        both = f"no run of {metric.baseline} or {metric.answer}"
        return Answer(NONE, f"no answer, {both} reached {metric.threshold:g} in {budget} steps")
    slow, fast = (record.steps.value for record in (baseline, treated) if record.steps)
    facts = (
        f"to reach {metric.threshold:g}, {metric.baseline} needs {show_ratio(saved)} times the steps of "
        f"{metric.answer} ({thousands(slow)} and {thousands(fast)}; {_reached(baseline)} and {_reached(treated)} runs "
        f"reach it in {budget})"
    )
    if saved.ratio.low is None:
        return Answer(NONE, f"no answer, fewer than {FEWEST} runs of an arm say nothing about the next ones", facts)
    paid = metric.arms[metric.answer] - metric.arms[metric.baseline]
    facts += f", after {thousands(paid)} offline frames" if paid > 0 else ""
    found = verdict(saved)
    if found == UNKNOWN:
        return Answer(found, "not known, the interval does not exclude 1", facts)
    least = "at least " if saved.bound in (">=", "<=") else ""
    return Answer(found, f"{metric.cause} {found} {least}{thousands(abs(slow - fast))} environment steps", facts)


def _overall_answer(found: Mapping[str, Answer], records: Records, metric: Metric) -> Answer:
    """In how many tasks steps were saved, where, and the ratio over all tasks."""
    names = short_names(found)
    where = {
        kind: [names[task] for task, answer in found.items() if answer.verdict == kind]
        for kind in (SAVED, COST, UNKNOWN, NONE)
    }
    facts = "; ".join(f"{kind} on {', '.join(on)}" for kind, on in where.items() if on)
    overall = records.get((ALL, metric.answer, metric.baseline))
    ratio = overall.ratio if overall else None
    if ratio:
        times = show_interval(ratio.ratio, bound=ratio.bound.strip("?"))
        within = ", within the budgets," if ratio.bound == "?" else ""
        facts += f"; to reach {metric.threshold:g} on all tasks, {metric.baseline} needs {times} times the steps"
        facts += f"{within} of {metric.answer}"
    if len(where[NONE]) == len(found):
        return Answer(NONE, f"no answer on any of {len(found)} tasks", facts)
    claim = f"{metric.cause} saved environment steps on {len(where[SAVED]) or 'none'} of {len(found)} tasks"
    claim += f" and cost steps on {len(where[COST])}" if where[COST] else ""
    return Answer(verdict(ratio) if ratio else NONE, claim, facts)


def _all_tasks(tasks: Tasks, records: Records, answers: Mapping[str, Answer], metric: Metric) -> Section:
    """The answer on every task, then every arm over all tasks."""
    names, overs = short_names(tasks), metric.compared_with(metric.answer)
    rows: list[list[Cell]] = []
    for task in tasks:
        ratios = [_ratio(records.get((task, metric.answer, over))) for over in overs]
        own = records.get((task, metric.answer, overs[0])) if overs else None
        answer = Toned(sentence(answers[task].claim), TONES.get(answers[task].verdict, ""))
        rows.append([names[task], *ratios, _reached(own) if own else "-", answer])
    won = []
    for over in overs:
        found = [records[task, metric.answer, over].ratio for task in tasks if (task, metric.answer, over) in records]
        verdicts = [verdict(ratio) for ratio in found if ratio]
        won.append(f"{verdicts.count(SAVED)} won, {verdicts.count(COST)} lost of {len(verdicts)}")
    head = ["task", *(f"{over} / {metric.answer}" for over in overs), "reached", "answer"]
    note = f"{metric.answer}, to a return of {metric.threshold:g}. Won and lost: the interval excludes 1."
    everywhere = _arms_table(ALL, records, metric, {})
    partial = [arm for arm in metric.arms if arm not in _arms(ALL, records)]
    text = [f"Not on every task yet: {', '.join(partial)}."] if partial else []
    rows.append(["all", *won, "", ""])
    blocks = [Table(head, rows, note=note), everywhere]
    return Section("Every task", text, blocks)


def _task(
    directory: Path,
    task: str,
    tasks: Tasks,
    records: Records,
    answer: Answer,
    metric: Metric,
    duration: Mapping[tuple[str, str], float],
) -> Section:
    arms = tasks[task]
    budget = next(iter(arms.values())).steps[-1]
    text = [f"{task}, {thousands(budget)} steps a run."]
    if len(tasks) > 1:
        text.append(sentence(str(answer)))
    overview = matplotlib.figure.Figure(figsize=(6.4, 3.6), layout="constrained")
    _draw_overview(panel := overview.subplots(), arms, metric)
    panel.legend(frameon=False, fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    against = []
    for arm in arms:
        if arm != metric.baseline:
            figure = matplotlib.figure.Figure(figsize=(3.8, 2.4), layout="constrained")
            _draw_against_baseline(figure.subplots(), arm, arms, metric)
            against.append(Figure(arm, figure))
    ratios = draw_ratios([records[key] for key in records if key[0] == task and key[2] == metric.baseline], metric)
    pair = [Figure("Learning curves: IQM over runs", overview)]
    if ratios:
        pair.append(Figure(f"Steps of {metric.baseline} / steps of the arm: above 1 it saves steps", ratios))
    blocks: list[Table | Figure | Gallery] = [Gallery(pair), _arms_table(task, records, metric, duration)]
    if against:
        note = "Thick: IQM over runs; thin: runs; band: 95 % interval; dotted: threshold."
        blocks.append(Gallery(against, f"Each arm against {metric.baseline}", note))
    if shown := films(directory, task, arms):
        blocks.append(Gallery(shown, "Final policies"))
    return Section(short_names(tasks)[task], text, blocks)


def _arms_table(task: str, records: Records, metric: Metric, duration: Mapping[tuple[str, str], float]) -> Table:
    """One row per arm."""
    arms = _arms(task, records)
    overs = [
        over
        for over in (metric.baseline, *metric.controls)
        if any(key[0] == task and key[2] == over for key in records)
    ]
    alone = task != ALL
    rows: list[list[Cell]] = []
    for arm, record in arms.items():
        steps = (
            show_interval(record.steps, thousands, "" if record.reached == record.n else ">=") if record.steps else ""
        )
        better = record.better if record.over == metric.baseline else None
        rows.append(
            [
                Toned(arm, "strong" if arm == metric.answer else ""),
                *(_ratio(records.get((task, arm, over))) for over in overs),
                *([steps, Toned(_reached(record), "" if record.reached == record.n else "bad")] if alone else []),
                show_interval(better) if better else "-",
                show_interval(record.area),
                show_interval(record.final),
                *([thousands(metric.arms[arm]) if metric.arms[arm] else "-"] if alone else [str(record.n)]),
                *([f"{duration[task, arm]:.1f}"] if (task, arm) in duration else ["-"] if alone else []),
            ]
        )
    head = ["arm", *(f"{over} / arm" for over in overs)]
    head += [f"steps to {metric.threshold:g}", "reached"] if alone else []
    head += ["P(better)", "area", "final return", *(["frames", "minutes"] if alone else ["seeds"])]
    return Table(head, rows, "Arms" if alone else "All arms over all tasks")


def _arms(task: str, records: Records) -> dict[str, Record]:
    """By arm its first record on a task: that over the baseline, if there is one."""
    found: dict[str, Record] = {}
    for record in records.values():
        if record.task == task:
            found.setdefault(record.arm, record)
    return found


def _ratio(record: Record | None) -> Cell:
    return Toned(show_ratio(record.ratio), TONES.get(verdict(record.ratio), "")) if record and record.ratio else "-"


def _reached(record: Record) -> str:
    return f"{record.reached}/{record.n}"


def _missing(tasks: Tasks, metric: Metric) -> list[str]:
    names = short_names(tasks)
    lacking = {names[task]: [arm for arm in metric.arms if arm not in arms] for task, arms in tasks.items()}
    missing = [f"{', '.join(arms)} on {task}" for task, arms in lacking.items() if arms]
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
        panel = panels.pop(0)
        panel.set_title(names[task], fontweight="bold")
        _draw_overview(panel, arms, metric)
    for arm in each:
        panel = panels.pop(0)
        panel.set_title(arm, color=style(arm, metric)[0])
        _draw_against_baseline(panel, arm, only, metric)
    for empty in panels:
        empty.remove()
    lines = {line.get_label(): line for panel in figure.axes for line in panel.get_lines()}
    shown = [arm for arm in metric.arms if arm in lines]
    title = "thick: IQM over runs; thin: runs; band: 95 % interval; dotted: threshold" if each else "IQM over runs"
    handles = [lines[arm] for arm in shown]
    figure.legend(handles, shown, title=title, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def draw_ratios(records: Sequence[Record], metric: Metric) -> matplotlib.figure.Figure | None:
    """The ratios with their intervals on a logarithmic axis, with an arrow where an interval is open; None if empty."""
    known = [(record, of) for record in records if (of := record.ratio) and of.baseline_reached + of.treated_reached]
    if not known:
        return None
    ends = [end for _, of in known for end in (of.ratio.value, of.ratio.low, of.ratio.high) if end]
    reach = 1.1 * float(np.clip(max(max(end, 1 / end) for end in ends), 2, 20))
    figure = matplotlib.figure.Figure(figsize=(6.4, 3.6), layout="constrained")
    panel = figure.subplots()
    panel.axvline(1, color="#404040", linewidth=0.8)
    for place, (record, of) in enumerate(reversed(known)):
        colour, _ = style(record.arm, metric)
        low = 1 / reach if of.bound == "<=" else max(of.ratio.low or of.ratio.value, 1 / reach)
        high = reach if of.bound == ">=" else min(of.ratio.high or of.ratio.value, reach)
        panel.plot([low, high], [place, place], color=colour, linewidth=2)
        panel.plot(np.clip(of.ratio.value, 1 / reach, reach), place, "o", color=colour)
        for end, marker in ((low, "<"), (high, ">")):
            if end in (1 / reach, reach):
                panel.plot(end, place, marker, color=colour, clip_on=False)
    panel.set_yticks(range(len(known)), [record.arm for record, _ in reversed(known)])
    panel.set(xscale="log", xlim=(1 / reach, reach), ylim=(-0.6, len(known) - 0.4), xlabel="← costs · saves →")
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10) if 1 / reach <= tick <= reach]
    panel.set_xticks(ticks)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    plain_axes(panel)
    return figure


def style(arm: str, metric: Metric) -> tuple[str, str]:
    """Colour and dashes of an arm, by its place among the controls or among the pretrained arms."""
    controls = [name for name, frames in metric.arms.items() if frames == 0 or name == metric.baseline]
    controls.sort(key=lambda name: name != metric.baseline)
    if arm in controls:
        place = controls.index(arm)
        return CONTROLS[place % len(CONTROLS)], DASHES[place % len(DASHES)]
    place = [name for name in metric.arms if name not in controls].index(arm)
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _draw_overview(panel: Axes, arms: Mapping[str, Any], metric: Metric) -> None:
    """The IQM of every arm on one task."""
    _frame(panel, arms.values(), metric)
    for arm in metric.arms:
        if arm in arms:
            colour, dashes = style(arm, metric)
            values = [point.value for point in arms[arm].points]
            panel.plot(arms[arm].steps, values, color=colour, linestyle=dashes, linewidth=2, label=arm)


def _draw_against_baseline(panel: Axes, arm: str, arms: Mapping[str, Any], metric: Metric) -> None:
    """One arm and the baseline on one task, with every run and the bands."""
    _frame(panel, arms.values(), metric)
    for name in (metric.baseline, arm):
        if name in arms:
            colour, dashes = style(name, metric)
            panel.plot(arms[name].steps, arms[name].values.T, color=colour, linewidth=0.7, alpha=0.5)
            draw_curve(panel, arms[name].steps, arms[name].points, colour, linestyle=dashes, linewidth=2)


def _frame(panel: Axes, every: Iterable[Any], metric: Metric) -> None:
    values = np.concatenate([of.values.ravel() for of in every])
    low, high = min(values.min(), metric.threshold), max(values.max(), metric.threshold)
    margin = 0.05 * (high - low) or 1.0
    panel.set_ylim(low - margin, high + margin)  # of the runs, not of the bands, which are wide with few runs
    panel.set_xlim(0, max(of.steps[-1] for of in every))
    panel.axhline(metric.threshold, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.set(xlabel="environment steps", ylabel=f"evaluation {RETURN}")
    plain_axes(panel)


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
