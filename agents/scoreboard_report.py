"""The report on a scoreboard: what the probes of every arm score, and the share of the gap that it closes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Plot

from rlpre.compare.report import write_report
from rlpre.compare.runner import Row, read_rows
from rlpre.evaluation import page
from rlpre.evaluation.page import COLOURS, CONTROLS, Cell, Figure, Section, Table, Toned, short_names, show_interval
from rlpre.evaluation.stats import Floats, Interval, mean_interval

FRESH, SUPERVISED = "fresh", "supervised"
READOUTS = ("output", "map")  # what `rlpre.whiten` whitens
GROUPS = ("cells", "place", "carried", "door", "distance", "action", "return")  # what is probed
SCORE, FEW, NUMBERS, CONDITION = "score", "few labels", "numbers", "condition"  # further metrics
READING = (
    "Means over seeds [95 % interval]. gap closed: (score - fresh) / (supervised - fresh), each in its better readout; "
    "score: the mean of the columns from {first} to {last}, each what linear probes score above chance on other "
    "episodes, from 0 to 1; few labels: the same without cells, from {few} labelled frames; numbers: how many features "
    "suffice a factor; condition: largest / smallest variance of the features before whitening."
)


@dataclass(frozen=True)
class Standing:
    """One arm on one world, in the readout with the higher mean score."""

    world: str
    arm: str
    readout: str
    score: Interval
    gap: Interval | None  # share of the gap between the controls that it closes; None if there is no gap
    means: dict[str, float]  # of all metrics, over the seeds


def standings(rows: Sequence[Row], world: str, arms: Sequence[str]) -> list[Standing]:
    """The arms of a world, the best first.

    The gap is the difference of the controls' means. Its interval must lie above 0: otherwise supervision adds
    nothing that could be closed. The interval of a share comes from the arm's scores minus those of ``fresh`` of the
    same seeds.
    """
    table: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.task == world:
            table.setdefault((row.arm, row.metric), {})[row.seed] = row.value

    def values(arm: str, metric: str) -> Floats:
        return np.array([value for _, value in sorted(table[arm, metric].items())])

    readout = {arm: max(READOUTS, key=lambda each, arm=arm: values(arm, f"{each}/{SCORE}").mean()) for arm in arms}
    score = {arm: values(arm, f"{readout[arm]}/{SCORE}") for arm in arms}
    gap, found = mean_interval(score[SUPERVISED] - score[FRESH]), []
    for arm in arms:
        share = None
        if (gap.low if gap.low is not None else gap.value) > 0:
            share = mean_interval((score[arm] - score[FRESH]) / gap.value)
        means = {metric: float(values(arm, metric).mean()) for known, metric in table if known == arm}
        found.append(Standing(world, arm, readout[arm], mean_interval(score[arm]), share, means))
    return sorted(found, key=lambda standing: -standing.score.value)


def report(directory: Path, worlds: Sequence[str], arms: Sequence[str], labels: int) -> str:
    """Writes the report of a scoreboard's runs (see `write_report`) and returns it as text.

    Args:
        directory: of the runs, all of them finished.
        worlds: in the order of the report.
        arms: `FRESH`, `SUPERVISED` and the objectives.
        labels: number of labelled frames behind the metric `FEW`.
    """
    rows = read_rows(directory)
    found = {world: standings(rows, world, arms) for world in worlds}
    summary = [
        {
            "world": world,
            "arm": one.arm,
            "readout": one.readout,
            **{f"score_{k}": v for k, v in asdict(one.score).items()},
        }
        | {f"gap_{k}": v for k, v in (asdict(one.gap) if one.gap else dict.fromkeys(asdict(one.score))).items()}
        | one.means
        for world, table in found.items()
        for one in table
    ]
    names = short_names(worlds)
    best = {world: next(one for one in table if one.arm not in (FRESH, SUPERVISED)) for world, table in found.items()}
    answer = "; ".join(f"{names[world]}: {_closes(one)}" for world, one in best.items()) + "."
    reading = READING.format(first=GROUPS[0], last=GROUPS[-1], few=labels)
    sections = [Section(names[world], blocks=[_table(table, reading)]) for world, table in found.items()]
    plot = draw(found)
    sections[0] = Section(sections[0].title, blocks=[Figure("Gap closed", plot), *sections[0].blocks])
    question = "Which objective's features say what a policy must know?"
    return write_report(directory, page.Page(question, answer, sections=sections), plot, summary, rows)


def _closes(best: Standing) -> str:
    if best.gap is None:
        return "supervision adds nothing to fresh weights, so there is no gap to close"
    return f"{best.arm} closes {show_interval(best.gap)} of the gap between fresh weights and supervision"


def _table(table: Sequence[Standing], note: str) -> Table:
    groups = [name for name in GROUPS if f"{READOUTS[0]}/{name}" in table[0].means]
    metrics = [*groups, FEW, NUMBERS]
    rows: list[list[Cell]] = []
    for one in table:
        gap = "-" if one.gap is None or one.arm in (FRESH, SUPERVISED) else show_interval(one.gap)
        numbers = [f"{one.means[f'{one.readout}/{name}']:.{0 if name == NUMBERS else 2}f}" for name in metrics]
        cells = [gap, show_interval(one.score), one.readout, *numbers, f"{one.means[CONDITION]:.0e}"]
        rows.append([Toned(one.arm, "soft" if one.arm in (FRESH, SUPERVISED) else ""), *cells])
    return Table(["arm", "gap closed", SCORE, "readout", *metrics, CONDITION], rows, note=note)


def draw(found: Mapping[str, Sequence[Standing]]) -> Plot:
    """The scores of all arms with their intervals, a panel for each world."""
    most = max(map(len, found.values()))
    figure = Plot(figsize=(4.5 * len(found), 0.8 + 0.3 * most), layout="constrained")
    for axes, (world, table) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for place, one in enumerate(reversed(table)):
            low, high = (one.score.value if end is None else end for end in (one.score.low, one.score.high))
            colour = CONTROLS[0] if one.arm in (FRESH, SUPERVISED) else COLOURS[READOUTS.index(one.readout)]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(one.score.value, place, "o", color=colour)
        axes.set_yticks(range(len(table)), [f"{one.arm} ({one.readout})" for one in reversed(table)])
        axes.set_title(short_names([world])[world])
        axes.set_xlabel(SCORE)
    return figure
