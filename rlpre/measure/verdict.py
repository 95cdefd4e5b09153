"""Did a correction cure exposure bias? A rule that is fixed before anything is measured.

Errors are regret errors per episode up to the horizon, padded; the excess is OO - EE (see `rlpre.measure.exposure`).
All changes are against the plain clone, pair by pair of seed and episode; something rises or falls if its 95 % interval
excludes 0. The first line that holds is the verdict:

- *harms*: success falls, or OO rises and success does not: whoever succeeds more by a longer way is not worse;
- *cures*: OO falls, the excess falls, and at least half of the clone's excess is removed;
- *reduces*: OO falls and the excess falls;
- *no effect*: anything else, which is not to say that there is none.

What is removed is the smaller of the two falls. A correction that makes the policy better everywhere lets OO fall and
leaves the excess; one that makes it worse in the expert's contexts, as reinforcement learning can, lets the excess fall
and leaves OO: neither is a cure. Nor is there one where the clone shows no excess.
"""

from dataclasses import dataclass

import numpy as np

from rlpre.errors import RlpreError
from rlpre.measure.crossed import estimate
from rlpre.measure.exposure import EE, OO, REGRET, Sample
from rlpre.measure.stats import Floats, Interval

CURES, REDUCES, NOTHING, HARMS, NONE = "cures", "reduces", "no effect", "harms", "no verdict"
HALF = 0.5


@dataclass(frozen=True)
class Change:
    """What a correction changed.

    Attributes:
        before: the clone's excess, in regret errors per episode.
        excess: the change of the excess.
        free: the change of the errors of OO.
        forced: the change of the errors of EE.
        success: the change of the share of successes on its own.
    """

    before: Interval
    excess: Interval
    free: Interval
    forced: Interval
    success: Interval

    @property
    def removed(self) -> float | None:
        """The share of the clone's excess that is gone; None if it shows none."""
        if not above(self.before):
            return None
        return max(0.0, -max(self.free.value, self.excess.value) / self.before.value)

    @property
    def verdict(self) -> str:
        """See the top of this file; "no verdict" without intervals."""
        if any(figure.low is None for figure in (self.before, self.excess, self.free, self.success)):
            return NONE
        if below(self.success) or (above(self.free) and not above(self.success)):
            return HARMS
        if self.removed is None or not (below(self.free) and below(self.excess)):
            return NOTHING
        return CURES if self.removed >= HALF else REDUCES


def above(figure: Interval) -> bool:
    """Its interval lies above 0."""
    return figure.low is not None and figure.low > 0


def below(figure: Interval) -> bool:
    """Its interval lies below 0."""
    return figure.high is not None and figure.high < 0


def change(treated: Sample, clone: Sample, rng: np.random.Generator) -> Change:
    """What ``treated`` changed against ``clone``, over the seeds and episodes that both have.

    Raises:
        RlpreError: if they have no seed in common, or not the same test episodes.
    """
    seeds = sorted(set(treated.seeds) & set(clone.seeds))
    if not seeds:
        raise RlpreError(f"seeds {list(treated.seeds)} and {list(clone.seeds)} have none in common: nothing to compare")
    one, other = treated.of(seeds), clone.of(seeds)
    if one.kept.shape != other.kept.shape:
        counts = one.kept.shape[1], other.kept.shape[1]
        raise RlpreError(f"{counts[0]} and {counts[1]} test episodes cannot be paired: measure both on the same")
    errors, before = _errors(one), _errors(other)
    rise = errors - before
    success = one.success[..., 1] - other.success[..., 1]
    columns = [before[..., OO] - before[..., EE], rise[..., OO] - rise[..., EE], rise[..., OO], rise[..., EE], success]
    return Change(*estimate(np.stack(columns, axis=-1), one.kept & other.kept, lambda means: means, rng))


def _errors(sample: Sample) -> Floats:
    """(seeds, episodes, 4) regret errors."""
    return np.asarray(sample.steps[..., REGRET, :].sum(axis=-1))
