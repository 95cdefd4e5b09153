"""The report on a study of transfer: which pretraining helps a task, which harms, and should it have stopped earlier?

Agents start from fresh weights ("scratch") or from a checkpoint of a pretraining. The best checkpoint is chosen by the
scores of some seeds and tested on others, because the best of several scores is optimistic. Paired by seed:

- *chosen - scratch* and *last - scratch*; the last checkpoint below scratch is negative transfer;
- *chosen - last*: above 0 it helps to stop early;
- *last - last of* the first source, the right one: below 0 this source is worse.

Each difference is tested in both directions by a one-sided t-test at `LEVEL`, with Holm's correction over the tasks.
Measured share of families of 4 tasks without any effect in which a task is called positive (nominal .05), at 3, 5 and
10 pairs: normal .05 .05 .04; uniform .08 .07 .06; log-normal (.5) with rare large gains .02 .01 .01, with rare large
losses .15 .16 .18, because few pairs meet one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from scipy import stats

from rlpre.compare.report import write_report
from rlpre.compare.runner import ROWS, Row, Run, read_rows
from rlpre.compare.summary import load_rows
from rlpre.errors import RlpreError
from rlpre.evaluation import page
from rlpre.evaluation.page import COLOURS, CONTROLS, DASHES, Figure, Section, Table, Toned, short_names, signed
from rlpre.evaluation.stats import FEWEST, Floats, Interval, holm, mean_interval

SCORE, SCRATCH = "score", "scratch"
LEVEL = 0.05  # risk of a false call over all tasks, in each direction
POSITIVE, NEGATIVE, UNDECIDED, NO_VERDICT = "positive", "negative", "undecided", "no verdict"
TONES = {POSITIVE: "good", NEGATIVE: "bad"}
CHOSEN, LAST, EARLY = "chosen - scratch", "last - scratch", "chosen - last"
ALL = "all tasks"  # the mean over them
READING = (
    "Differences are means over n test seeds [95 % interval], pair by pair of seed. chosen: the checkpoint, in steps "
    'of pretraining, that did best on {} other seeds; "or scratch" if scratch did as well there. last: pretraining to '
    f"its end. Verdicts: one-sided t-tests in both directions at {LEVEL}, corrected over the tasks by Holm; the mean "
    f"over the tasks is one test. Fewer than {FEWEST} seeds give no interval and no verdict."
)

Scores = Mapping[Run, float]


@dataclass(frozen=True)
class Design:
    """What a study tests: sources, tasks, checkpoints in steps of pretraining, and the seeds that choose one."""

    sources: tuple[str, ...]
    tasks: tuple[str, ...]
    checkpoints: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True)
class Contrast:
    """A mean difference of paired scores, with p-values against "no gain" and "no loss"; None below `FEWEST` seeds."""

    gain: Interval
    above: float | None
    below: float | None

    @property
    def verdict(self) -> str:
        """What the p-values say at `LEVEL`."""
        if self.above is None or self.below is None:
            return NO_VERDICT
        if min(self.above, self.below) > LEVEL:
            return UNDECIDED
        return POSITIVE if self.above < self.below else NEGATIVE


@dataclass(frozen=True)
class Findings:
    """The results of a study.

    Attributes:
        seeds: that tested.
        choices: by (source, task) the chosen checkpoint, and whether it did better than scratch.
        contrasts: by source and difference, and then by task or `ALL`.
    """

    seeds: tuple[int, ...]
    choices: dict[tuple[str, str], tuple[int, bool]]
    contrasts: dict[str, dict[str, dict[str, Contrast]]]


def arm_name(source: str, step: int) -> str:
    """The arm that starts from a checkpoint."""
    return f"{source}@{step}"


def read_scores(directory: Path) -> dict[Run, float]:
    """The score of every finished run; of a published study without runs those in its ``rows.json``."""
    rows = read_rows(directory)
    if not rows and (directory / ROWS).exists():
        rows = load_rows(directory / ROWS)
    return {Run(row.task, row.arm, row.seed): row.value for row in rows if row.metric == SCORE}


def report(directory: Path, design: Design, unit: str) -> str:
    """Reports on a study of runs (task, ``scratch`` or ``source@step``, seed) with a score in ``unit``.

    Raises:
        RlpreError: if scores of the seeds that choose, or of all that test, are missing.
    """
    scores = read_scores(directory)
    found = find(scores, design)
    summary = [
        {
            "task": task,
            "arm": source,
            "chosen": found.choices.get((source, task), (None,))[0],
            "difference": difference,
            **asdict(one.gain),
            "p_above": one.above,
            "p_below": one.below,
            "verdict": one.verdict,
        }
        for source, differences in found.contrasts.items()
        for difference, tasks in differences.items()
        for task, one in tasks.items()
    ]
    rows, curves = [], []
    for run, score in scores.items():
        rows.append(Row("transfer", *astuple(run), SCORE, score))
        source, _, step = run.arm.partition("@")
        if run.seed in design.validation:
            steps = [int(step)] if step else design.checkpoints  # scratch is a level line
            curves += [Row("transfer", run.task, source, run.seed, "score by checkpoint", score, at) for at in steps]
    rows += sorted(curves, key=lambda row: row.step)
    return write_report(directory, make_page(found, scores, design, unit), draw(scores, design, unit), summary, rows)


def values(scores: Scores, task: str, arm: str, seeds: Iterable[int]) -> Floats:
    """The scores (seeds,) of one arm on one task.

    Raises:
        RlpreError: if one is missing or not finite.
    """
    runs = [Run(task, arm, seed) for seed in seeds]
    for run in runs:
        if run not in scores:
            raise RlpreError(f"{run} has no score yet: run the study to its end")
        if not np.isfinite(scores[run]):
            raise RlpreError(f"the score of {run} is not finite: look at that run")
    return np.array([scores[run] for run in runs])


def choose(scores: Scores, design: Design, source: str, task: str) -> tuple[int, bool]:
    """The checkpoint with the highest mean, the earliest of equals and never step 0, and whether it beats scratch."""
    steps = sorted(filter(None, design.checkpoints))
    means = {step: values(scores, task, arm_name(source, step), design.validation).mean() for step in steps}
    best = max(steps, key=means.__getitem__)
    return best, bool(means[best] > values(scores, task, SCRATCH, design.validation).mean())


def selected(scores: Scores, design: Design) -> set[tuple[str, str]]:
    """(task, arm) of the runs that test: scratch, and the chosen and the last checkpoint of every source."""
    pairs = {(task, SCRATCH) for task in design.tasks}
    for source in design.sources:
        for task in design.tasks:
            steps = choose(scores, design, source, task)[0], max(design.checkpoints)
            pairs |= {(task, arm_name(source, step)) for step in steps}
    return pairs


def find(scores: Scores, design: Design) -> Findings:
    """The verdicts on every source, from the seeds that have tested all of them."""
    pairs, tasks = selected(scores, design), design.tasks
    testing = sorted({run.seed for run in scores} - set(design.validation))
    seeds = tuple(seed for seed in testing if all(Run(*pair, seed) in scores for pair in pairs))
    if not seeds:
        raise RlpreError("no seed has tested every chosen checkpoint yet: run the study to its end")
    choices = {(source, task): choose(scores, design, source, task) for source in design.sources for task in tasks}

    def stack(arms: Iterable[str]) -> Floats:
        return np.stack([values(scores, task, arm, seeds) for task, arm in zip(tasks, arms, strict=True)], axis=1)

    scratch = stack([SCRATCH] * len(tasks))
    last = {source: stack([arm_name(source, max(design.checkpoints))] * len(tasks)) for source in design.sources}
    first, contrasts = design.sources[0], dict[str, dict[str, dict[str, Contrast]]]()
    for source in design.sources:
        chosen = stack(arm_name(source, choices[source, task][0]) for task in tasks)
        differences = {CHOSEN: chosen - scratch, LAST: last[source] - scratch, EARLY: chosen - last[source]}
        if source != first:
            differences[f"last - last of {first}"] = last[source] - last[first]
        contrasts[source] = {
            name: dict(zip([*tasks, ALL], (*compare(each), *compare(each.mean(axis=1, keepdims=True))), strict=True))
            for name, each in differences.items()
        }
    return Findings(seeds, choices, contrasts)


def compare(differences: Floats) -> tuple[Contrast, ...]:
    """Tests every column of differences (seeds, tasks) in both directions, corrected over the columns."""
    gains = [mean_interval(column) for column in differences.T]
    if len(differences) < FEWEST:
        return tuple(Contrast(gain, None, None) for gain in gains)
    sides = [holm(p_values(sign * differences)).tolist() for sign in (1, -1)]
    return tuple(Contrast(gain, *pair) for gain, *pair in zip(gains, *sides, strict=True))


def p_values(differences: Floats) -> Floats:
    """(tasks,) p-values of one-sided t-tests of differences (seeds, tasks) against "no gain"; 0 or 1 without spread."""
    mean, error = differences.mean(axis=0), stats.sem(differences)
    score = np.divide(mean, error, out=np.where(mean > 0, np.inf, -np.inf), where=error > 0)
    return np.asarray(stats.t.sf(score, len(differences) - 1))


def make_page(found: Findings, scores: Scores, design: Design, unit: str) -> page.Page:
    """The report as a page."""
    names = short_names(design.tasks)
    first, widest = design.sources[0], design.sources[-1]  # the last source is also compared with the first
    columns = list(found.contrasts[widest])
    verdicts = [found.contrasts[first][CHOSEN][task].verdict for task in names]
    helped, harmed = verdicts.count(POSITIVE), verdicts.count(NEGATIVE)
    facts, tables = [], []
    for source, differences in found.contrasts.items():
        overall = (f"{name} {signed(each[ALL].gain)}, {each[ALL].verdict}" for name, each in differences.items())
        facts.append(f"{source}, mean over the tasks: {'; '.join(overall)}.")
    for task, name in {**names, ALL: ALL}.items():
        rows: list[list[page.Cell]] = []
        for source, differences in found.contrasts.items():
            chosen, better = found.choices.get((source, task), ("", True))
            rows.append([source, f"{chosen}" + " or scratch" * (not better)])
            for difference in columns:
                one = differences[difference][task] if difference in differences else None
                rows[-1] += [signed(one.gain), Toned(one.verdict, TONES.get(one.verdict, "soft"))] if one else ["", ""]
        head = ["source", "chosen", *(cell for difference in columns for cell in (difference, ""))]
        tables.append(Table(head, rows, f"{name}, n={len(found.seeds)}"))
    curves = Figure("Score by steps of pretraining", draw(scores, design, unit))
    return page.Page(
        "Which pretraining helps which task, which one harms, and should it have stopped earlier?",
        f"Pretraining on {first} helps on {helped or 'none'} and harms on {harmed or 'none'} of {len(names)} tasks.",
        "good" if helped > harmed else "bad" if harmed > helped else "",
        facts,
        sections=[
            Section("Verdicts", [f"Scores: {unit}."], [curves, *tables]),
            Section("Reading the numbers", [READING.format(len(design.validation))]),
        ],
    )


def draw(scores: Scores, design: Design, unit: str) -> Plot:
    """One panel per task: the mean score over the validation seeds by steps of pretraining, of every source."""
    names = short_names(design.tasks)
    plot = Plot(figsize=(4.4 * len(names), 4.0), dpi=150)
    plot.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for axes, (task, name) in zip(plot.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
        _draw_task(axes, task, scores, design)
        axes.set_title(name, fontweight="bold")
        axes.set_xlabel("steps of pretraining")
    plot.supylabel(unit, fontsize="medium")
    title = "mean over the seeds that choose\nbars and band: 95 % interval; grey dots: seeds of scratch"
    plot.legend(*axes.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=4, frameon=False)
    return plot


def _draw_task(axes: Axes, task: str, scores: Scores, design: Design) -> None:
    steps = sorted(design.checkpoints)
    places = np.arange(len(steps))  # at equal distances: steps grow in ratios, and begin at 0
    scratch = values(scores, task, SCRATCH, design.validation)
    mean = mean_interval(scratch)
    page.draw_curve(axes, (-0.5, len(steps) - 0.5), (mean, mean), CONTROLS[0], label=SCRATCH)
    axes.plot(np.full(len(scratch), -0.4), scratch, ".", color=CONTROLS[1])
    for number, source in enumerate(design.sources):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        means = [mean_interval(values(scores, task, arm_name(source, step), design.validation)) for step in steps]
        at = places + 0.08 * (number - (len(design.sources) - 1) / 2)  # side by side
        axes.plot(at, [one.value for one in means], dashes, color=colour, marker="o", markersize=4, label=source)
        ends = np.array([(one.low, one.high) for one in means], dtype=np.float64)  # None becomes NaN
        axes.vlines(at, *ends.T, color=colour, linewidth=1)
    axes.set(xticks=places, xticklabels=steps)
    page.plain_axes(axes)
