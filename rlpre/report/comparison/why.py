"""Why a comparison came out as it did: its encoders' features, two causes taken apart, frames, and gains by task."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpre.measure import stats
from rlpre.measure.factorial import TwoWay, two_way
from rlpre.measure.stats import StepsRatio
from rlpre.report.comparison.answers import COST, SAVED, verdict
from rlpre.report.comparison.features import Encoders, Measured, read_features
from rlpre.report.comparison.results import Figures, Metric, Results, times
from rlpre.report.facts import FEATURES
from rlpre.report.tables import Rows
from rlpre.report.words import short_names, show_interval, show_ratio, thousands

FEWEST_SIZES = 3  # of offline data that make a curve


@dataclass(frozen=True)
class Gain:
    """What pretraining brought on one task.

    Attributes:
        ratios: by control, its steps / those of the arm that the study is about.
        probes: mean score over labels of that arm's encoder and of each control's that was measured.
    """

    ratios: dict[str, StepsRatio]
    probes: dict[str, float]


@dataclass(frozen=True)
class Why:
    """What the numbers of a comparison say about its causes; each part is empty where nothing was asked about it.

    Attributes:
        measured: the encoders' features by environment and arm.
        causes: by environment, pretraining (first) and whitening (second) taken apart.
        sizes: by environment, arms that differ in the offline frames of one pretraining, by their number.
        gains: by environment, if there are several.
    """

    measured: Measured
    causes: dict[str, TwoWay]
    sizes: dict[str, dict[int, str]]
    gains: dict[str, Gain]

    def as_json(self) -> dict[str, Any]:
        """Its part of ``results.json``."""
        parts = {
            "features": {env: {arm: of.as_json() for arm, of in arms.items()} for env, arms in self.measured.items()},
            "causes": {env: asdict(of) for env, of in self.causes.items()},
            "gains": {env: asdict(of) for env, of in self.gains.items()},
        }
        return {name: part for name, part in parts.items() if part}


def read_why(directory: Path, results: Results, metric: Metric) -> Why:
    """Looks for the causes of a study's results.

    Args:
        directory: the study; beside it a study of features is looked for.
        results: its figures.
        metric: what it asks.

    Raises:
        RlpreError: if a measurement is damaged.
    """
    measured = read_features(directory.resolve().parent / FEATURES, metric.arms)
    causes = {env: _take_apart(results[env], of) for env, of in measured.items() if env in results}
    sizes = {env: _sizes(results[env], of) for env, of in measured.items() if env in results}
    gains = {env: _gain(arms, measured.get(env, {}), metric) for env, arms in results.items() if metric.answer in arms}
    return Why(
        measured,
        {env: found for env, found in causes.items() if found},
        {env: arms for env, arms in sizes.items() if len(arms) >= FEWEST_SIZES},
        gains if len(results) > 1 else {},
    )


def _take_apart(arms: dict[str, Figures], encoders: dict[str, Encoders]) -> TwoWay | None:
    """Of the four arms that start trained or not, whitened or not, if there is one of each."""
    corners: dict[tuple[bool, bool], list[Figures]] = {}
    for arm, of in encoders.items():
        if of.distinct is not None and arm in arms:
            corners.setdefault((of.updates > 0, of.whitened), []).append(arms[arm])
    if len(corners) < 4 or any(len(of) > 1 for of in corners.values()):
        return None
    runs = [corners[trained, white][0] for trained in (False, True) for white in (False, True)]
    seeds = sorted(set.intersection(*(set(of.runs.seeds) for of in runs)))
    if not seeds:
        return None
    of_seeds = [[of.runs.seeds.index(seed) for seed in seeds] for of in runs]
    steps, reached = (
        np.stack([part[rows] for part, rows in zip(parts, of_seeds, strict=True)]).reshape(2, 2, -1)
        for parts in zip(*map(times, runs), strict=True)
    )
    return two_way(np.maximum(steps, 1), reached, np.random.default_rng(0))


def _sizes(arms: dict[str, Figures], encoders: dict[str, Encoders]) -> dict[int, str]:
    trained = {arm: of.distinct for arm, of in encoders.items() if of.updates and not of.whitened and arm in arms}
    return dict(sorted((distinct, arm) for arm, distinct in trained.items() if distinct is not None))


def _gain(arms: dict[str, Figures], encoders: dict[str, Encoders], metric: Metric) -> Gain:
    asked, rng = arms[metric.answer], np.random.default_rng(0)
    controls = [
        arm for arm in metric.arms if arm in arms and arm != metric.answer and _untrained(arm, encoders, metric)
    ]
    budget = float(asked.runs.steps[-1])
    ratios = {arm: stats.steps_ratio(times(arms[arm]), times(asked), budget, rng) for arm in controls}
    shared = [encoders[arm] for arm in (metric.answer, *controls) if arm in encoders]
    labels = [label for label in shared[0].probes if all(label in of.probes for of in shared)] if shared else []
    probes = {
        arm: float(np.mean([encoders[arm].probes[label].value for label in labels]))
        for arm in (metric.answer, *controls)
        if labels and arm in encoders
    }
    return Gain(ratios, probes)


def _untrained(arm: str, encoders: dict[str, Encoders], metric: Metric) -> bool:
    """Whether no objective formed an arm's encoder; frames may have served to whiten it."""
    return not metric.arms[arm] or (arm in encoders and not encoders[arm].updates)


def causes(why: Why) -> list[str]:
    """A sentence for each environment in which causes were taken apart."""
    names = short_names(why.measured)
    return [f"{names[env]}: {cause_sentence(found)}." for env, found in why.causes.items()]


def tables(why: Why, metric: Metric, draw: Callable[[Rows], str]) -> list[str]:
    """The gains by task and the encoders' features, each with a title."""
    parts = []
    if why.gains:
        parts += [f"Gain by task: steps of a control / steps of {metric.answer}", draw(gain_rows(why.gains, metric))]
    for env, encoders in why.measured.items():
        parts += [f"Features of frozen encoders on frames of {env}", draw(feature_rows(encoders))]
    return parts


def feature_rows(encoders: dict[str, Encoders]) -> Rows:
    """The encoders of one environment as a table; probes in the columns behind."""
    labels = list(dict.fromkeys(label for of in encoders.values() for label in of.probes))
    header = ["arm", "updates", "different frames", "whitened", "condition number", "dimensions", *labels]
    rows = [
        [
            arm,
            str(of.updates),
            "-" if of.distinct is None else f"{of.distinct:,}",
            "yes" if of.whitened else "no",
            show_interval(of.condition, thousands),
            f"{of.dimensions:.0f}",
            *(f"{of.probes[label].value:.2f}" if label in of.probes else "-" for label in labels),
        ]
        for arm, of in encoders.items()
    ]
    return [header, *rows]


def gain_rows(gains: dict[str, Gain], metric: Metric) -> Rows:
    """One row a task and one with the wins: on how many tasks the interval says that steps were saved, and cost."""
    controls = list(dict.fromkeys(arm for of in gains.values() for arm in of.ratios))
    measured = list(dict.fromkeys(arm for of in gains.values() for arm in of.probes))
    names, rows = short_names(gains), []
    for env, of in gains.items():
        ratios = [show_ratio(of.ratios[arm]) if arm in of.ratios else "-" for arm in controls]
        rows.append([names[env], *ratios, *(f"{of.probes[arm]:.2f}" if arm in of.probes else "-" for arm in measured)])
    won = []
    for arm in controls:
        found = [verdict(of.ratios[arm]) for of in gains.values() if arm in of.ratios]
        won.append(f"{found.count(SAVED)} won, {found.count(COST)} lost of {len(found)}")
    header = ["task", *(f"{arm} / {metric.answer}" for arm in controls), *(f"probes of {arm}" for arm in measured)]
    return [header, *rows, ["all", *won, *("" for _ in measured)]]


def cause_sentence(found: TwoWay) -> str:
    """The causes in words."""
    difference = show_interval(found.difference, "{:,.0f}".format)
    censored = f"; {found.censored} runs never got there and count as their budget" if found.censored else ""
    return (
        f"pretraining divides the steps by {show_interval(found.first)}, whitening by {show_interval(found.second)}; "
        f"{_together(found)} (pretraining's factor without whitening / with it: {show_interval(found.interaction)}; "
        f"steps that it saves without - with: {difference}){censored}"
    )


def _together(found: TwoWay) -> str:
    if found.interaction.low is None:
        return f"fewer than {stats.FEWEST} seeds do not tell how they act together"
    multiply, add = _holds(found.interaction, 1), _holds(found.difference, 0)
    if multiply and add:
        return "whether their effects multiply or add up is not known"
    if multiply:
        return "their effects multiply and do not add up"
    return "their effects add up and do not multiply" if add else "their effects neither multiply nor add up"


def _holds(interval: stats.Interval, value: float) -> bool:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low <= value <= interval.high
