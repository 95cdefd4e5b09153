"""Two causes, each there or not: what each does to the steps that learning takes, and whether they act alone.

Gradient descent from an error e0 at a pace 1 / kappa (kappa: the condition number) is at an error e after
kappa * log(e0 / e) steps. A better start takes something off the logarithm, better conditioning divides the whole: the
savings of a start shrink with good conditioning if counted in steps, while its factor stays what it is. So effects that
multiply (``interaction`` 1) fit that picture, effects that add up in steps (``difference`` 0) do not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlpre.errors import RlpreError
from rlpre.measure import stats
from rlpre.measure.stats import Floats, Interval


@dataclass(frozen=True)
class TwoWay:
    """The effects of two causes on steps; each seed is its own control.

    Attributes:
        first: how many times fewer steps with the first cause than without, geometric mean over the second; above 1 it
            saves steps.
        second: the same of the second cause.
        interaction: the first cause's factor without the second one / with it; 1: the effects multiply.
        difference: steps that the first cause saves without the second one - with it; 0: the effects add up.
        censored: runs that never reached the threshold and count as the budget, which draws every effect towards none.
    """

    first: Interval
    second: Interval
    interaction: Interval
    difference: Interval
    censored: int


def two_way(steps: Floats, reached: NDArray[np.bool_], rng: np.random.Generator) -> TwoWay:
    """Takes apart the steps of runs with neither cause, one of them, or both.

    Args:
        steps: (2, 2, seeds) to the threshold, by first cause, second cause, and seed.
        reached: (2, 2, seeds) whether the threshold was reached.
        rng: the source of the resampling.

    Returns:
        The effects; fewer than three seeds have no interval.

    Raises:
        RlpreError: for another shape, or steps that are not positive.
    """
    if steps.shape[:-1] != (2, 2) or not steps.shape[-1] or steps.shape != reached.shape:
        raise RlpreError(f"steps are (2, 2, seeds), not {steps.shape}, and reached {reached.shape}: give both alike")
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise RlpreError("steps are positive numbers: give the budget for runs that never reach the threshold")
    logs = np.log(steps)
    ratios = [
        (logs[0] - logs[1]).mean(0),
        (logs[:, 0] - logs[:, 1]).mean(0),
        logs[0, 0] - logs[1, 0] - logs[0, 1] + logs[1, 1],
    ]
    first, second, interaction = (
        stats.interval(np.exp(ratio)[:, None], rng, stats.geometric_mean, logarithmic=True) for ratio in ratios
    )
    saved = steps[0, 0] - steps[1, 0] - steps[0, 1] + steps[1, 1]
    difference = stats.interval(saved[:, None], rng, stats.mean)
    return TwoWay(first, second, interaction, difference, int((~reached).sum()))
