"""Freeze a pretrained encoder, anchor it, fine-tune it, or start from scratch? A rule, and how often it is right.

The rule asks in this order; the first that applies decides:

1. collapsed features -> scratch: they hold less than fresh weights give for nothing;
2. a linear head learns no more from few labels than on fresh weights -> scratch: what was learned is not of this task;
3. it learns as much from many labels too, and most of what the target shows was pretrained on -> freeze: nothing that a
   policy needs is missing, and frames are encoded once;
4. heads of the pretraining's world help those of the target, as priors -> anchor: the truth is near what was learned;
5. otherwise -> fine-tune: a better start than fresh weights, but no place to stay.

A difference counts if its interval excludes 0 and it is `MATTERS` or more.

Thresholds were set by reason and are not fitted. On 40 pairs of encoder and task (scripts/advice.py on the comparisons
"full", "quick", "ablation" and "many") the advised way was the best in 48 % and not certainly worse than the best in
88 %; always scratch in 52 % and 85 %, a choice by lot in 47 % and 82 %. The rule sums up evidence; it does not foretell
learning curves.

[0] Zhang et al. 2022, "Light-weight probing of unsupervised representations for reinforcement learning": probes rank
    encoders as reinforcement learning does.
[1] Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlpre.errors import RlpreError
from rlpre.measure.stats import Floats, Interval, iqm, probability_of_improvement

SCRATCH, FREEZE, ANCHOR, FINE_TUNE = WAYS = ("scratch", "freeze", "anchor", "fine-tune")
MATTERS = 0.02  # of a score at most 1: two answers in a hundred
SEEN = 0.5  # of the target's steps show a frame that was pretrained on: most of them
ALIKE = {ANCHOR: FINE_TUNE, FINE_TUNE: ANCHOR}  # go on training the pretrained weights


@dataclass(frozen=True)
class Evidence:
    """What is known of an encoder and of its target.

    Attributes:
        collapse: the cause, see `rlpre.measure.health.diagnose`; None: healthy.
        few: score of linear heads with few labels less that on fresh weights, mean over labels; None: not asked.
        most: the same with most labels.
        seen: share of the target's steps whose frame was pretrained on; None: unknown.
        priors: by label what the pretraining's head gains as a prior of the target's; empty: unknown.
    """

    collapse: str | None
    few: Interval | None
    most: Interval | None
    seen: Interval | None
    priors: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """What to do with an encoder.

    Attributes:
        way: one of ``WAYS``; None: nothing can be advised.
        claim: the advice in a few words.
        reasons: what decided it, and what stands beside it; a sentence each.
    """

    way: str | None
    claim: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.claim}: {'; '.join(self.reasons)}."


def advise(evidence: Evidence) -> Advice:
    """The rule at the top of this file."""
    if evidence.collapse:
        why = f"its features have collapsed ({evidence.collapse}), fresh weights give more"
        return Advice(SCRATCH, "start from scratch", (why,))
    few, most = evidence.few, evidence.most
    if few is None or most is None:
        return Advice(
            None, "no advice", ("nothing could be asked of its features: give labelled frames of the target",)
        )
    told = f"with few labels linear heads score {_signed(few)} against fresh weights"
    if not _counts(few, 1):
        return Advice(SCRATCH, "start from scratch", (f"{told}, no gain of {MATTERS:g} that is certain",))
    kept = f"with most labels {_signed(most)}, {'a loss' if _counts(most, -1) else 'no loss'}"
    reasons: tuple[str, ...] = (told, kept, _seen(evidence.seen))
    if not _counts(most, -1) and evidence.seen is not None and evidence.seen.value >= SEEN:
        return Advice(FREEZE, "freeze it", reasons)
    helped, harmed = ([name for name, gain in evidence.priors.items() if _counts(gain, sign)] for sign in (1, -1))
    reasons = (*reasons, _priors(evidence.priors, helped, harmed))
    if helped and not harmed:
        return Advice(ANCHOR, "fine-tune it, anchored to its weights", reasons)
    return Advice(FINE_TUNE, "fine-tune it", reasons)


def _counts(difference: Interval, sign: int) -> bool:
    """Whether a difference is certain and matters, upwards (1) or downwards (-1)."""
    near = difference.low if sign > 0 else difference.high
    return near is not None and sign * near > 0 and sign * difference.value >= MATTERS


def _signed(figure: Interval) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:+.3f} (too few draws for an interval)"
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _seen(seen: Interval | None) -> str:
    if seen is None:
        return "what it has seen of the target is unknown"
    return f"{seen.value:.0%} of the target's steps show a frame that it was pretrained on"


def _priors(priors: Mapping[str, Interval], helped: list[str], harmed: list[str]) -> str:
    if not priors:
        return "whether heads of its pretraining's world help as priors is unknown"
    helping = ", ".join(helped) or "none"
    return f"as priors, heads of its pretraining's world help with {helping} of {len(priors)} labels" + (
        f" and harm with {', '.join(harmed)}" if harmed else ""
    )


@dataclass(frozen=True)
class Contest:
    """What became of the ways to use one encoder in one environment.

    Attributes:
        environment: where agents were trained.
        objective: that the encoder was pretrained by.
        advised: a way, or None.
        areas: by way, (runs,) areas under learning curves.
        reasons: of the advice.
    """

    environment: str
    objective: str
    advised: str | None
    areas: Mapping[str, Floats]
    reasons: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The way of the largest interquartile mean."""
        return max(self.areas, key=lambda way: float(iqm(self.areas[way][:, None])))

    @property
    def taken(self) -> str | None:
        """The advised way, or the one like it that was run instead; None if neither was."""
        ways = (self.advised, ALIKE.get(self.advised or ""))
        return next((way for way in ways if way in self.areas), None)

    def worse(self, way: str) -> bool:
        """Whether a run of the best way is certain to do better, more often than not."""
        better = probability_of_improvement(self.areas[self.best][:, None], self.areas[way][:, None])
        return way != self.best and better.low is not None and better.low > 0.5


@dataclass(frozen=True)
class HitRate:
    """How often whoever chooses a way is right.

    Attributes:
        best: share of contests in which it was the best way.
        not_worse: share in which it was not certainly worse than the best.
        contests: in which it could be told.
    """

    best: float
    not_worse: float
    contests: int


def hit_rates(contests: Sequence[Contest]) -> dict[str, HitRate]:
    """How often the advice was right, beside those who always choose alike and one who chooses by lot.

    All are asked about the same contests: those of two ways or more in which the advised one was run. Who always
    chooses what was not run there is asked about the others only.

    Args:
        contests: of one or several studies.

    Returns:
        By "advice", "always scratch", .., "chance".

    Raises:
        RlpreError: if there is no such contest.
    """
    asked = [of for of in contests if of.taken is not None and len(of.areas) > 1]
    if not asked:
        raise RlpreError(
            "no advice can be checked: a study must hold finished runs of scratch and of an encoder, used as advised"
        )
    rates = {"advice": _rate([(of, [of.taken]) for of in asked if of.taken])}
    for way in WAYS:
        if runs := [(of, [way]) for of in asked if way in of.areas]:
            rates[f"always {way}"] = _rate(runs)
    return {**rates, "chance": _rate([(of, list(of.areas)) for of in asked])}


def _rate(chosen: Sequence[tuple[Contest, Sequence[str]]]) -> HitRate:
    """Of choices between ways by lot."""
    best = [np.mean([way == of.best for way in ways]) for of, ways in chosen]
    fine = [np.mean([not of.worse(way) for way in ways]) for of, ways in chosen]
    return HitRate(float(np.mean(best)), float(np.mean(fine)), len(chosen))
