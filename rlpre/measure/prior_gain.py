"""What is the head of one world worth as the prior of another's, when labels are few?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError
from rlpre.measure.prior import PriorHead
from rlpre.measure.probe import Factor, Floats, Indices, Reader, factors, read
from rlpre.measure.stats import Interval, interval, mean


@dataclass(frozen=True)
class PriorGain:
    """What a head for one world is worth as the prior of a head for the same label in another; made by `prior_gain`.

    Attributes:
        label: its name.
        rows: labels of the target that the heads were fitted to.
        alone: score of the source's head, which saw none of them.
        without: score of a head without a prior.
        with_prior: score of a head with it, scaled down as the evidence says.
        gain: ``with_prior`` less ``without``, seed by seed.
        trust: what the prior was scaled by, from 0 (no prior) to 1.
    """

    label: str
    rows: int
    alone: Interval
    without: Interval
    with_prior: Interval
    gain: Interval
    trust: Interval


def prior_gain(
    encoder: AnyEncoder,
    source: Reader,
    target: Reader,
    label: str,
    rows: int = 30,
    seeds: Sequence[int] = range(5),
) -> PriorGain:
    """Fits heads to few labels, with and without a prior: the head that all labels of another world give.

    Inputs that both worlds show are not left out: the prior has seen their labels.

    Args:
        encoder: frozen for the purpose; its mode is restored.
        source: of frames whose labels make the prior.
        target: of other frames, for the same encoder.
        label: of both.
        rows: labels of the target to learn from.
        seeds: each draws these, and the fifth of the target where scores are taken: balanced accuracy, or R² of a
            quantity. Intervals span these draws; encoder and source are one.

    Raises:
        RlpreError: if one of the two cannot be probed for the label, or fewer than ``rows`` labels are there to learn
            from, or a draw holds one value alone.
    """
    told, known = _read(encoder, source, label, 0)
    found = []
    for seed in seeds:
        x, asked = _read(encoder, target, label, seed)
        train, test = asked.folds(seed)[0]
        if rows > len(train):
            raise RlpreError(f"{rows} labels {label!r} are asked for, {len(train)} are there: collect more frames")
        drawn = np.random.default_rng(seed).permutation(train)[:rows]
        classes = np.union1d(known.classes, asked.classes)
        y = _columns(asked, classes)[drawn]
        alone = PriorHead.fit(told, _columns(known, classes))
        without = PriorHead.fit(x[drawn], y)
        tied = PriorHead.fit(x[drawn], y, pretrained=alone.weights)
        scores = [_score(head, x[test], asked, classes, test) for head in (alone, without, tied)]
        found.append([*scores, scores[2] - scores[1], tied.strengths[1] / sum(tied.strengths)])
    rng = np.random.default_rng(0)
    return PriorGain(label, rows, *(interval(column[:, None], rng, mean) for column in np.array(found).T))


def _read(encoder: AnyEncoder, reader: Reader, label: str, seed: int) -> tuple[Floats, Factor]:
    """Features (n, d) where the label is known."""
    rows, (asked,) = factors(reader, [label], seed)
    return read(encoder, reader, rows[asked.places]), asked


def _columns(asked: Factor, classes: Floats) -> Floats:
    """Targets (n, k): one for each class, or the quantity."""
    values = asked.values[:, None]
    return values.astype(np.float64) if asked.quantity else (values == classes).astype(np.float64)


def _score(head: PriorHead, x: Floats, asked: Factor, classes: Floats, at: Indices) -> float:
    answers = head.predict(x)[0]
    return asked.score(answers[:, 0] if asked.quantity else classes[answers.argmax(axis=1)], at)
