"""The report on a scoreboard: what every arm scores, the share of the gap that it closes, and what a score is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Plot
from scipy.stats import pearsonr, rankdata

from rlpre.compare.report import write_report
from rlpre.compare.runner import Row, read_rows, read_study
from rlpre.compare.summary import read_results
from rlpre.errors import RlpreError
from rlpre.evaluation import page
from rlpre.evaluation.page import COLOURS, CONTROLS, Cell, Figure, Section, Table, Toned, short_names, show_interval
from rlpre.evaluation.stats import CONFIDENCE, Floats, Interval, mean_interval

FRESH, SUPERVISED = "fresh", "supervised"
READOUTS = {  # by name the arguments of `rlpre.whiten`
    features + end: {"features": features, "power": power}
    for features in ("output", "map")
    for end, power in (("", 1.0), ("-soft", 0.5))
}
GROUPS = {  # what is probed, and those of its factors that are stored as labels; not every world has all
    "cells": (),
    "place": ("x", "y", "angle", "object", "direction"),
    "carried": ("carrying", "health", "ammo"),
    "door": (),
    "distance": ("distance",),
    "action": ("expert",),
    "return": (),
}
SCORE, IMITATION, SIGNAL, PROBED = SCORES = "score", "imitation", "signal", "probes"  # the first ranks the arms
CONDITION = "condition"  # a further metric
READING = (
    "Means over seeds [95 % interval]. gap closed: (score - fresh) / (supervised - fresh), each in its best readout. "
    "score: the mean of imitation and probes. imitation: the expert's action, above chance, by a network like PPO's "
    "after a few updates; without an expert only the probes count. signal: the share of the features' variance that "
    "the symbols (ViZDoom: the labels) explain. probes: the mean of the columns from cells to return, as far as the "
    "world has them, each what linear probes score above chance on other episodes. condition: largest / smallest "
    "variance of the features before whitening."
)


@dataclass(frozen=True)
class Standing:
    """One arm on one world, in the readout with the highest mean score."""

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
        return np.array(list(table[arm, metric].values()))

    def above_fresh(arm: str) -> Floats:
        own, fresh = (table[each, f"{readout[each]}/{SCORE}"] for each in (arm, FRESH))
        if not (seeds := sorted(own.keys() & fresh.keys())):
            raise RlpreError(f"{arm!r} and {FRESH!r} have no seed in common on {world}: run both with the same seeds")
        return np.array([own[seed] - fresh[seed] for seed in seeds])

    readout = {arm: max(READOUTS, key=lambda each, arm=arm: values(arm, f"{each}/{SCORE}").mean()) for arm in arms}
    gap, found = mean_interval(above_fresh(SUPERVISED)), []
    for arm in arms:
        share = None
        if (gap.low if gap.low is not None else gap.value) > 0:
            share = mean_interval(above_fresh(arm) / gap.value)
        means = {metric: float(values(arm, metric).mean()) for known, metric in table if known == arm}
        score = mean_interval(values(arm, f"{readout[arm]}/{SCORE}"))
        found.append(Standing(world, arm, readout[arm], score, share, means))
    return sorted(found, key=lambda standing: -standing.score.value)


def rank_correlations(found: Mapping[str, Sequence[Standing]], published: Path) -> dict[str, Interval]:
    """How well does each of `SCORES` rank the arms of a published comparison, whose areas show how fast agents learn?

    It is Spearman's correlation, with ranks among the arms of a world, and Fisher's interval, which has no width if the
    order is the same. Points are the arms with a frozen encoder, read as agents read it; scores (by world in ``found``)
    and areas are means over seeds. A score that a world does not have, such as imitation, is left out.

    Raises:
        RlpreError: if the comparison has no two such arms on a world.
    """
    tasks, arms = read_results(published).tasks, read_study(published).get("arms", {})
    ranks: list[Floats] = []  # by world (1 + scores, points)
    for world, standings_of in found.items():
        means, points = {one.arm: one.means for one in standings_of}, []
        for name, arm in arms.items() if world in tasks else ():
            objective = {"random": FRESH, "frozen": arm["encoder"]}.get(arm["mode"])
            how = ("map" if arm["whiten"] == "map" else "output", 1.0 if arm.get("power") is None else arm["power"])
            readout = next((each for each, known in READOUTS.items() if tuple(known.values()) == how), None)
            if name in tasks[world] and objective in means and arm["whiten"] and readout and not arm.get("clone"):
                scored = [means[objective].get(f"{readout}/{score}", np.nan) for score in SCORES]
                points.append([tasks[world][name].areas.mean(), *scored])
        if len(points) > 1:
            ranked = rankdata(np.transpose(points), axis=1)
            ranks.append(ranked - ranked.mean(1, keepdims=True))
    if not ranks:
        raise RlpreError(f"{published} has no two arms with a frozen, whitened encoder on a world of this scoreboard")
    areas, *scored = np.concatenate(ranks, axis=1)
    known = {name: values for name, values in zip(SCORES, scored, strict=True) if np.isfinite(values).all()}
    results = {name: pearsonr(areas, values) for name, values in known.items()}
    ends = {name: result.confidence_interval(CONFIDENCE) for name, result in results.items()}
    return {name: Interval(results[name].statistic, *ends[name], len(areas)) for name in results}


def report(directory: Path, worlds: Sequence[str], arms: Sequence[str], published: Path | None = None) -> str:
    """Writes the report of a scoreboard's runs (see `write_report`) and returns it as text.

    Args:
        directory: of the runs, all of them finished.
        worlds: in the order of the report.
        arms: `FRESH`, `SUPERVISED` and the objectives.
        published: a comparison for `rank_correlations`.
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
    sections = [Section(names[world], blocks=[_table(table, READING)]) for world, table in found.items()]
    plot = draw(found)
    sections[0] = Section(sections[0].title, blocks=[Figure("Gap closed", plot), *sections[0].blocks])
    if published:
        ranked = rank_correlations(found, published)
        note = f"Rank correlation with the areas of {ranked[SCORE].n} arms of {published.name} [95 % interval]."
        cells: list[list[Cell]] = [[name, show_interval(each)] for name, each in ranked.items()]
        sections.append(Section("What is a score worth?", blocks=[Table(["score", "correlation"], cells, note=note)]))
    question = "Which objective's features say what a policy must know?"
    return write_report(directory, page.Page(question, answer, sections=sections), plot, summary, rows)


def _closes(best: Standing) -> str:
    if best.gap is None:
        return "supervision adds nothing to fresh weights, so there is no gap to close"
    return f"{best.arm} closes {show_interval(best.gap)} of the gap between fresh weights and supervision"


def _table(table: Sequence[Standing], note: str) -> Table:
    known = table[0].means
    metrics = [name for name in (IMITATION, SIGNAL, PROBED, *GROUPS) if f"{table[0].readout}/{name}" in known]
    rows: list[list[Cell]] = []
    for one in table:
        gap = "-" if one.gap is None or one.arm in (FRESH, SUPERVISED) else show_interval(one.gap)
        numbers = [f"{one.means[f'{one.readout}/{name}']:.2f}" for name in metrics]
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
            colour = CONTROLS[0] if one.arm in (FRESH, SUPERVISED) else COLOURS[list(READOUTS).index(one.readout)]
            axes.plot([low, high], [place, place], color=colour, linewidth=2)
            axes.plot(one.score.value, place, "o", color=colour)
        axes.set_yticks(range(len(table)), [f"{one.arm} ({one.readout})" for one in reversed(table)])
        axes.set_title(short_names([world])[world])
        axes.set_xlabel(SCORE)
    return figure
