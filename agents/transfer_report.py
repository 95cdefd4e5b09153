"""The report on a study of transfer: which pretraining helps a task, which harms, and should it have stopped earlier?

Agents start from fresh weights ("scratch") or from a checkpoint of a pretraining. The best checkpoint is chosen on the
scores of some seeds, and tested on others: the best of several scores is optimistic. Three differences are tested on
each task, pair by pair of seed:

- *chosen - scratch*;
- *last - scratch*: pretraining to its end; below 0 this is negative transfer;
- *chosen - last*: above 0 it helps to stop early.

Scratch shows whether to pretrain at all: frozen features of any source can lose to it. Whether a source is wrong is
tested by its last checkpoint against that of the first source, the right one.

Every difference is tested in both directions by the paired t-test, one-sided at `LEVEL`, with Holm's correction over
the tasks. Measured share of families of 4 tasks without any effect of which one or more is called positive, nominal
.05, at 3, 5 and 10 pairs (1000 repetitions): normal .05 .05 .04; uniform .08 .07 .06; log-normal (.5) with gains far
out .02 .01 .01, with losses far out .15 .16 .18: there gains are small and common and losses large and rare, so that
few pairs meet one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Plot
from scipy.stats import ttest_1samp

from rlpre.compare.report import write_report
from rlpre.compare.runner import Row, Run, read_rows
from rlpre.errors import RlpreError
from rlpre.evaluation.page import (
    COLOURS,
    CONTROLS,
    DASHES,
    Cell,
    Figure,
    Page,
    Section,
    Table,
    Toned,
    plain_axes,
    short_names,
    signed,
)
from rlpre.evaluation.stats import FEWEST, Floats, Interval, holm, mean_interval

SCORE, SCRATCH = "score", "scratch"
LEVEL = 0.05  # risk of a false call over all tasks, in each direction
POSITIVE, NEGATIVE, UNDECIDED, NONE_GIVEN = "positive", "negative", "undecided", "no verdict"
TONES = {POSITIVE: "good", NEGATIVE: "bad", UNDECIDED: "soft", NONE_GIVEN: "soft"}
CHOSEN, LAST, EARLY = "chosen - scratch", "last - scratch", "chosen - last"
ALL = "all"  # the mean over the tasks
READING = (
    "Differences are means over n test seeds [95 % interval], pair by pair of seed. chosen: the checkpoint, in steps of "
    'pretraining, that did best on {validation} other seeds; "or scratch" if scratch did as well there. last: '
    "pretraining to its end. Verdicts: one-sided tests in both directions at {level:g}, corrected over the tasks by "
    'Holm; "all" is the mean over the tasks, one test. Fewer than {fewest} seeds give no interval and no verdict.'
)

Scores = Mapping[Run, float]


@dataclass(frozen=True)
class Design:
    """What a study tests: sources, tasks, steps of pretraining, and the seeds that choose a checkpoint."""

    sources: tuple[str, ...]
    tasks: tuple[str, ...]
    checkpoints: tuple[int, ...]
    validation: tuple[int, ...]


@dataclass(frozen=True)
class Contrast:
    """A difference of paired scores.

    Attributes:
        gain: its mean over seeds, in units of score.
        above: p-value against "no gain", corrected over tasks; None below `FEWEST` seeds.
        below: p-value against "no loss".
    """

    gain: Interval
    above: float | None
    below: float | None

    @property
    def verdict(self) -> str:
        """ "no verdict" from fewer than `FEWEST` seeds."""
        if self.above is None or self.below is None:
            return NONE_GIVEN
        if min(self.above, self.below) > LEVEL:
            return UNDECIDED
        return POSITIVE if self.above < self.below else NEGATIVE


@dataclass(frozen=True)
class Findings:
    """The results of a study.

    Attributes:
        seeds: that tested.
        choices: (source, task) -> the chosen checkpoint, and whether it did better than scratch.
        contrasts: (source, difference) -> task or "all" -> result.
        instead: every source but the first -> task or "all" -> its last checkpoint minus that of the first source.
    """

    seeds: tuple[int, ...]
    choices: dict[tuple[str, str], tuple[int, bool]]
    contrasts: dict[tuple[str, str], dict[str, Contrast]]
    instead: dict[str, dict[str, Contrast]]


def arm_name(source: str, step: int) -> str:
    """The arm that starts from a checkpoint."""
    return f"{source}@{step}"


def read_scores(directory: Path) -> dict[Run, float]:
    """The score of every finished run."""
    return {Run(row.task, row.arm, row.seed): row.value for row in read_rows(directory) if row.metric == SCORE}


def report(directory: Path, design: Design, unit: str) -> str:
    """Reports on a study of transfer; returns the text.

    Args:
        directory: a study of runs (task, ``scratch`` or ``source@step``, seed), each with a "score".
        design: what it tests.
        unit: of the scores, in words.

    Raises:
        RlpreError: if scores of the seeds that choose, or of all that test, are missing.
    """
    scores = read_scores(directory)
    found = find(scores, design)
    rivals = {(source, f"instead of {design.sources[0]}"): tasks for source, tasks in found.instead.items()}
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
        for (source, difference), tasks in (found.contrasts | rivals).items()
        for task, one in tasks.items()
    ]
    rows = read_rows(directory)
    study = rows[0].study
    for task in design.tasks:  # curves by steps of pretraining, scratch as a level line
        for name in (SCRATCH, *design.sources):
            for seed in design.validation:
                for step in sorted(design.checkpoints):
                    run = Run(task, SCRATCH if name == SCRATCH else arm_name(name, step), seed)
                    rows.append(Row(study, task, name, seed, "score by checkpoint", scores[run], step))
    page = make_page(found, design, scores, unit)
    return write_report(directory, page, draw(scores, design, unit), summary, rows)


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
    pairs = selected(scores, design)
    seeds = tuple(
        seed
        for seed in sorted({run.seed for run in scores} - set(design.validation))
        if all(Run(*pair, seed) in scores for pair in pairs)
    )
    if not seeds:
        raise RlpreError("no seed has tested every chosen checkpoint yet: run the study to its end")
    choices = {
        (source, task): choose(scores, design, source, task) for source in design.sources for task in design.tasks
    }
    scratch = np.stack([values(scores, task, SCRATCH, seeds) for task in design.tasks], axis=1)
    contrasts_, last = {}, {}
    for source in design.sources:
        steps = [(task, choices[source, task][0], max(design.checkpoints)) for task in design.tasks]
        chosen, last[source] = (
            np.stack([values(scores, one[0], arm_name(source, one[at]), seeds) for one in steps], axis=1)
            for at in (1, 2)
        )
        for name, difference in (
            (CHOSEN, chosen - scratch),
            (LAST, last[source] - scratch),
            (EARLY, chosen - last[source]),
        ):
            contrasts_[source, name] = by_task(difference, design.tasks)
    first, *others = design.sources
    instead = {source: by_task(last[source] - last[first], design.tasks) for source in others}
    return Findings(seeds, choices, contrasts_, instead)


def by_task(differences: Floats, tasks: tuple[str, ...]) -> dict[str, Contrast]:
    """Tests of differences (seeds, tasks) on every task, and of their mean over the tasks."""
    (overall,) = contrasts(differences.mean(axis=1, keepdims=True))
    return {**dict(zip(tasks, contrasts(differences), strict=True)), ALL: overall}


def contrasts(differences: Floats) -> tuple[Contrast, ...]:
    """Tests every column of differences (seeds, tasks) in both directions, corrected over the columns."""
    gains = [mean_interval(column) for column in differences.T]
    if len(differences) < FEWEST:
        return tuple(Contrast(gain, None, None) for gain in gains)
    sides = [holm(p_values(sign * differences)).tolist() for sign in (1, -1)]
    return tuple(Contrast(gain, *pair) for gain, *pair in zip(gains, *sides, strict=True))


def p_values(differences: Floats) -> Floats:
    """(tasks,) one-sided p-values against "no gain" of differences (seeds, tasks); of equal ones 0 if they are gains."""
    equal = np.ptp(differences, axis=0) == 0
    spread = np.where(equal, np.arange(len(differences))[:, None], differences)  # avoids the division by 0
    tested = ttest_1samp(spread, 0.0, alternative="greater").pvalue
    return np.where(equal, np.where(differences[0] > 0, 0.0, 1.0), tested)


def make_page(found: Findings, design: Design, scores: Scores, unit: str) -> Page:
    """The report as a page."""
    names = short_names(design.tasks)
    first, *others = design.sources
    helped, harmed = (
        sum(found.contrasts[first, CHOSEN][task].verdict == verdict for task in names)
        for verdict in (POSITIVE, NEGATIVE)
    )
    facts = [_in_words(source, found, names) for source in design.sources]
    for source in others:
        overall = found.instead[source][ALL]
        facts.append(f"{source} instead of {first}: {signed(overall.gain)} over all tasks, {overall.verdict}.")
    head = ["source", "chosen", CHOSEN, "", LAST, "", EARLY, ""]
    tables = []
    for task, name in {**names, ALL: f"mean of {len(names)} tasks"}.items():
        rows: list[list[Cell]] = []
        for source in design.sources:
            chosen, better = found.choices.get((source, task), ("", True))
            three = (found.contrasts[source, difference][task] for difference in (CHOSEN, LAST, EARLY))
            rows.append([source, f"{chosen}" + " or scratch" * (not better), *_cells(three)])
        note = (
            ""
            if task == ALL
            else f"scratch: {values(scores, task, SCRATCH, design.validation).mean():.2f} in validation"
        )
        tables.append(Table(head, rows, f"{name}, n={len(found.seeds)}", note))
    if others:
        columns = [cell for name in (*names.values(), ALL) for cell in (name, "")]
        rows = [[source, *_cells(found.instead[source].values())] for source in others]
        tables.append(Table(["source", *columns], rows, f"Instead of {first}, both pretrained to their ends"))
    text = [f"Scores: {unit}. Differences are against scratch, or of two checkpoints, pair by pair of seed."]
    reading = READING.format(validation=len(design.validation), level=LEVEL, fewest=FEWEST)
    return Page(
        "Which pretraining helps which task, which one harms, and should it have stopped earlier?",
        f"Pretraining on {first} helps on {helped} and harms on {harmed} of {len(names)} tasks.",
        "good" if helped > harmed else "bad" if harmed > helped else "",
        facts,
        sections=[
            Section("Verdicts", text, [Figure("Score by steps of pretraining", draw(scores, design, unit)), *tables]),
            Section("Reading the numbers", [reading]),
        ],
    )


def _in_words(source: str, found: Findings, names: Mapping[str, str]) -> str:
    """The verdicts on a source."""

    def verdicts(difference: str) -> str:
        results = found.contrasts[source, difference]
        groups = {
            verdict: [name for task, name in names.items() if results[task].verdict == verdict] for verdict in TONES
        }
        return ", ".join(f"{verdict} on {' and '.join(on)}" for verdict, on in groups.items() if on)

    early = found.contrasts[source, EARLY][ALL]
    return (
        f"{source}: best checkpoint {verdicts(CHOSEN)}; last checkpoint {verdicts(LAST)}; stopping early gains "
        f"{signed(early.gain)} over all tasks, {early.verdict}."
    )


def _cells(contrasts: Iterable[Contrast]) -> list[Cell]:
    return [cell for one in contrasts for cell in (signed(one.gain), Toned(one.verdict, TONES[one.verdict]))]


def draw(scores: Scores, design: Design, unit: str) -> Plot:
    """One panel per task: the mean score over the validation seeds by steps of pretraining, of every source."""
    names = short_names(design.tasks)
    plot = Plot(figsize=(4.4 * len(names), 4.0), dpi=150)
    plot.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for axes, (task, name) in zip(plot.subplots(1, len(names), squeeze=False)[0], names.items(), strict=True):
        _draw_task(axes, task, scores, design)
        axes.set_title(name, fontweight="bold")
        axes.set(xlabel="steps of pretraining", ylabel=unit)
    title = "mean over the seeds that choose\nbars and band: 95 % interval; grey dots: seeds of scratch"
    plot.legend(*axes.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=4, frameon=False)
    return plot


def _draw_task(axes: Axes, task: str, scores: Scores, design: Design) -> None:
    steps = sorted(design.checkpoints)
    places = np.arange(len(steps))  # at equal distances: steps grow in ratios, and begin at 0
    scratch = values(scores, task, SCRATCH, design.validation)
    mean = mean_interval(scratch)
    axes.axhline(mean.value, color=CONTROLS[0], linewidth=1.5, label=SCRATCH)
    axes.plot(np.full(len(scratch), -0.4), scratch, ".", color=CONTROLS[1])
    if mean.low is not None and mean.high is not None:
        axes.axhspan(mean.low, mean.high, color=CONTROLS[0], alpha=0.08, linewidth=0)
    for number, source in enumerate(design.sources):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        means = [mean_interval(values(scores, task, arm_name(source, step), design.validation)) for step in steps]
        at = places + 0.08 * (number - (len(design.sources) - 1) / 2)  # side by side
        axes.plot(at, [one.value for one in means], dashes, color=colour, marker="o", markersize=4, label=source)
        ends = np.array([(one.low, one.high) for one in means], dtype=np.float64)  # None becomes NaN
        axes.vlines(at, *ends.T, color=colour, linewidth=1)
    axes.set(xticks=places, xticklabels=steps)
    plain_axes(axes)
