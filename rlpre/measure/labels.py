"""Label efficiency: how well does a probe answer that was shown m labels, by the features that it reads?

Every seed holds out other inputs and draws other labels, the same for all sources of features, so that they can be
compared. The labels of a seed are dealt out by class in turn, and the first m of them are those of every m: few labels
show all classes, more labels add to them.

The intervals are over these draws from one store: they do not speak of encoders pretrained anew, nor of other stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.measure.probe import Factor, Floats, Indices, Reader, factors, read, standardised
from rlpre.measure.stats import (
    Interval,
    StepsRatio,
    area_under_curve,
    interval,
    mean,
    steps_ratio,
    steps_to_threshold,
)

Scores = npt.NDArray[np.float64]

COUNTS = (10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)
SEEDS = 5
NEARLY = 0.9  # of the way from chance to what the baseline knows with most labels: the default threshold
STRENGTHS = np.logspace(0, 5, 11)  # of ridge, of which leave-one-out chooses: with few labels it matters most


@dataclass(frozen=True)
class LabelCurve:
    """What one source of features makes of labels; intervals without ends are of fewer than `stats.FEWEST` seeds.

    Attributes:
        scores: (seeds, counts) at held-out inputs.
        curve: their mean at each count.
        area: mean height of the curve over the logarithm of the count.
        labels: labels to the threshold, of which those of a seed that never reaches it are all it had.
        reached: seeds that reached it.
        ratio: labels of the baseline / labels of this source; None for the baseline itself.
    """

    scores: Scores
    curve: tuple[Interval, ...]
    area: Interval
    labels: Interval
    reached: int
    ratio: StepsRatio | None


@dataclass(frozen=True)
class Efficiency:
    """Label-efficiency curves of one factor.

    Attributes:
        counts: (points,) int64, numbers of labels.
        chance: the score of an answer that knows nothing.
        threshold: the score that `LabelCurve.labels` is about.
        baseline: the source that others are compared with.
        curves: by source.
    """

    counts: Indices
    chance: float
    threshold: float
    baseline: str
    curves: dict[str, LabelCurve]


def label_curves(
    features: Mapping[str, Floats],
    of: Factor,
    baseline: str | None = None,
    threshold: float | None = None,
    counts: Sequence[int] = COUNTS,
    seeds: int = SEEDS,
) -> Efficiency:
    """Label-efficiency curves of several sources of features, for one factor.

    Args:
        features: by source, such as "scratch", "contrastive", "supervised": (n, dim) of the factor's n inputs.
        of: what is asked.
        baseline: the source that others are compared with; None: the first.
        threshold: the score to reach; None: ``NEARLY`` what the baseline reaches with most labels.
        counts: numbers of labels, increasing; those that a fold's training part does not have are left out.
        seeds: how often labels are drawn.

    Raises:
        RlpreError: if a number is wrong, the baseline is unknown, or there are fewer labels than the first of counts.
    """
    baseline = next(iter(features)) if baseline is None else baseline
    lookup("source of features", baseline, features)
    if seeds < 1 or min(counts) < 2 or np.any(np.diff(counts) <= 0):
        raise RlpreError(
            f"labels are counted at {list(counts)} with {seeds} seeds: use increasing counts from 2 and at least 1 seed"
        )
    draws = [_draw(of, seed) for seed in range(seeds)]
    most = min(len(pool) for pool, _ in draws)
    kept = np.array([count for count in counts if count <= most])
    if not len(kept):
        raise RlpreError(f"label {of.name!r} leaves {most} labels to learn from: {counts[0]} are the fewest asked for")
    scores = {name: np.array([_scores(x, of, kept, *draw) for draw in draws]) for name, x in features.items()}
    if threshold is None:
        threshold = of.chance + NEARLY * (float(scores[baseline][:, -1].mean()) - of.chance)
    curves = {name: _summary(kept, found, scores[baseline], threshold) for name, found in scores.items()}
    curves[baseline] = replace(curves[baseline], ratio=None)
    return Efficiency(kept, of.chance, threshold, baseline, curves)


def label_efficiency(
    encoders: Mapping[str, AnyEncoder], reader: Reader, names: Sequence[str] | None = None, **settings: Any
) -> dict[str, Efficiency]:
    """Label-efficiency curves of several encoders, by label of the store.

    Args:
        encoders: by name; `probe.fresh` makes the control, objective "supervised" the upper one.
        reader: of frames with label columns, for all of them.
        names: labels to ask about; None: all that can be.
        **settings: of `label_curves`.

    Raises:
        RlpreError: see `label_curves`; also if a label cannot be asked about, an encoder does not fit the frames, or
            features are not finite.
    """
    rows, asked = factors(reader, names)
    features = {name: read(encoder, reader, rows) for name, encoder in encoders.items()}
    return {
        each.name: label_curves({name: x[each.places] for name, x in features.items()}, each, **settings)
        for each in asked
    }


def _draw(of: Factor, seed: int) -> tuple[Indices, Indices]:
    """Inputs to learn from, in the order in which their labels are shown, and inputs to test on."""
    train, test = of.folds(seed)[0]
    train = np.random.default_rng(seed).permutation(train)
    if of.quantity:
        return train, test
    values = of.values[train]
    turn = np.empty(len(train), np.int64)
    for each in of.classes:
        turn[values == each] = np.arange(np.sum(values == each))
    return train[np.argsort(turn, kind="stable")], test


def _scores(features: Floats, of: Factor, counts: Indices, pool: Indices, test: Indices) -> list[float]:
    """The score after each number of labels; what standardises the features needs no labels."""
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV

    known = standardised(features, pool)
    probe = RidgeCV(STRENGTHS) if of.quantity else RidgeClassifierCV(STRENGTHS, class_weight="balanced")
    shown = [pool[:count] for count in counts]
    return [of.score(probe.fit(known[rows], of.values[rows]).predict(known[test]), test) for rows in shown]


def _summary(counts: Indices, scores: Scores, baseline: Scores, threshold: float) -> LabelCurve:
    rng = np.random.default_rng(0)
    times, others = (steps_to_threshold(counts, of, threshold) for of in (scores, baseline))
    area = area_under_curve(np.log(counts), scores)
    return LabelCurve(
        scores=scores,
        curve=tuple(interval(column[:, None], rng, mean) for column in scores.T),
        area=interval(area[:, None], rng, mean),
        labels=interval(times[0][:, None], rng, mean, logarithmic=True),
        reached=int(times[1].sum()),
        ratio=steps_ratio(others, times, float(counts[-1]), rng),
    )
