"""What a comparison's frozen encoders give in its environments."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpre.errors import RlpreError
from rlpre.files import read_json
from rlpre.measure import stats
from rlpre.measure.stats import Interval
from rlpre.study import finished_runs

KNOWN = "features.json"


@dataclass(frozen=True)
class Features:
    """Of one encoder, on frames of one environment.

    Attributes:
        updates: of its pretraining; 0 for weights that were never trained.
        whitened: whether its features were whitened, over the offline frames.
        distinct: different offline frames that it was pretrained on; None: it has seen none.
        condition: the condition number of the features' covariance.
        dimensions: in so many directions they vary.
        probes: scores of linear probes by label.
    """

    updates: int
    whitened: bool
    distinct: int | None
    condition: float
    dimensions: int
    probes: dict[str, float]


@dataclass(frozen=True)
class Encoders:
    """The encoders of one arm in one environment: their numbers over seeds, and what they have in common.

    Attributes:
        updates, whitened, distinct: as in `Features`.
        condition: geometric mean.
        dimensions: mean.
        probes: means by label.
    """

    updates: int
    whitened: bool
    distinct: int | None
    condition: Interval
    dimensions: float
    probes: dict[str, Interval]

    def as_json(self) -> dict[str, Any]:
        """Its part of ``results.json``."""
        return asdict(self)


Measured = dict[str, dict[str, Encoders]]  # environment -> arm, in the order given


def read_features(directory: Path, arms: Iterable[str]) -> Measured:
    """The measured encoders of a study of features; empty without one.

    Args:
        directory: of the study.
        arms: in reading order.

    Raises:
        RlpreError: if a file of a finished measurement is missing or damaged.
    """
    found: dict[str, dict[str, list[Features]]] = {}
    for cell, run in finished_runs(directory).items():
        try:
            known = Features(**read_json(run / KNOWN))
        except TypeError as error:
            raise RlpreError(f"{run / KNOWN} is damaged ({error}): delete {run} and run the study again") from error
        found.setdefault(cell.environment, {}).setdefault(cell.arm, []).append(known)
    return {env: {arm: _together(of[arm]) for arm in arms if arm in of} for env, of in found.items()}


def _together(encoders: list[Features]) -> Encoders:
    rng, first = np.random.default_rng(0), encoders[0]
    condition = np.array([[of.condition] for of in encoders])
    labels = [label for label in first.probes if all(label in of.probes for of in encoders)]
    return Encoders(
        updates=first.updates,
        whitened=first.whitened,
        distinct=first.distinct,
        condition=stats.interval(condition, rng, stats.geometric_mean, logarithmic=True),
        dimensions=float(np.mean([of.dimensions for of in encoders])),
        probes={
            label: stats.interval(np.array([[of.probes[label]] for of in encoders]), rng, stats.mean)
            for label in labels
        },
    )
