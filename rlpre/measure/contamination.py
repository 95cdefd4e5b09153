"""Contamination: what would pretraining gain if it had seen nothing of the target?

Gains are taken to be linear in the overlap r of what was seen with what is tested, gain(r) = pure + leak * r.

- Over several overlaps, with all else equal, it is a line and ``pure`` its height at 0.
- Where all else is not equal it is a difference in differences: items that were seen may be easier, and frames that
  hold them may be better or worse in general. Beside the pretraining in question stands a clean one, beside the items
  that were seen stand others. What is the same for all items of a pretraining, or for all pretrainings of an item,
  drops out; what is left assumes that without a leak one pretraining had led by as much on all items.
"""

from dataclasses import dataclass

import numpy as np

from rlpre.errors import RlpreError
from rlpre.measure import stats
from rlpre.measure.stats import Floats, Interval


@dataclass(frozen=True)
class PureGain:
    """What a pretraining gained, in units of score; without ends below three seeds.

    Attributes:
        naive: as measured, whatever was seen.
        pure: without what was seen.
        leak: what full overlap brings.
        overlap: of what ``naive`` was measured on, in [0, 1].
    """

    naive: Interval
    pure: Interval
    leak: Interval
    overlap: float


def pure_gain(gains: Floats, overlap: Floats, rng: np.random.Generator) -> PureGain:
    """Takes the leak out of a gain.

    Args:
        gains: score with pretraining minus score without, seed by seed. (seeds, points) for several overlaps; or
            (seeds, pretrainings, groups of items), of which the first pretraining is in question.
        overlap: of each point, or of each pretraining with each group, in [0, 1]: `gains` without the seeds. The plain
            case, contaminated and clean on seen and unseen items, is [[1, 0], [0, 0]].
        rng: the source of the resampling over seeds.

    Returns:
        Gains averaged over the points, or over the first pretraining's groups, which count alike.

    Raises:
        RlpreError: if the shapes do not fit, a number is not finite or no share, or the overlap never differs in a way
            that could be told from the pretrainings and groups themselves.
    """
    gains, overlap = np.asarray(gains, np.float64), np.asarray(overlap, np.float64)
    if overlap.ndim not in (1, 2) or gains.shape[1:] != overlap.shape or not len(gains):
        raise RlpreError(
            f"gains {gains.shape} and overlap {overlap.shape} do not fit: give (seeds, points) and (points,), or "
            "(seeds, pretrainings, groups) and (pretrainings, groups)"
        )
    if not np.isfinite(gains).all() or not ((overlap >= 0) & (overlap <= 1)).all():
        raise RlpreError("gains must be finite and overlaps shares in [0, 1]: leave out the runs that failed")
    own = overlap.copy()  # what pretrainings and groups by themselves do not explain
    for axis in range(overlap.ndim):
        own -= own.mean(axis, keepdims=True)
    if np.allclose(own, 0):
        raise RlpreError(
            f"overlaps {overlap.tolist()} say nothing about a leak: measure a clean pretraining too, on items that "
            "were seen and others that were not"
        )
    leak = (gains * own).sum(tuple(range(1, gains.ndim))) / (own**2).sum()
    asked, shares = (gains[:, 0], overlap[0]) if overlap.ndim == 2 else (gains, overlap)
    naive = asked.mean(axis=1)

    def over_seeds(values: Floats) -> Interval:
        return stats.interval(values[:, None], rng, stats.mean)

    pure = over_seeds(naive - leak * shares.mean())
    return PureGain(over_seeds(naive), pure, over_seeds(leak), float(shares.mean()))
