"""The advice: the rule, case by case, and how often it was right, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from rlpre import RlpreError
from rlpre.measure.advice import Contest, Evidence, advise, hit_rates
from rlpre.measure.stats import Interval


def interval(value: float, margin: float = 0.01) -> Interval:
    return Interval(value, value - margin, value + margin, 5)


GOOD = Evidence(None, interval(0.1), interval(0.0), interval(0.9), {})


@pytest.mark.parametrize(
    ("way", "change"),
    [
        ("freeze", {}),
        ("scratch", {"collapse": "complete collapse"}),
        (None, {"few": None, "most": None}),
        ("scratch", {"collapse": "dimensional collapse", "few": None, "most": None}),
        ("scratch", {"few": interval(0.0)}),
        ("scratch", {"few": interval(-0.1)}),
        ("scratch", {"few": interval(0.1, margin=0.2)}),  # not certain
        ("scratch", {"few": interval(0.015)}),  # certain, and too little
        ("scratch", {"few": Interval(0.1, None, None, 2)}),  # too few draws
        ("fine-tune", {"most": interval(-0.05)}),  # something is lost for good if it stays as it is
        ("freeze", {"most": interval(-0.05, margin=0.1)}),
        ("freeze", {"most": interval(-0.015)}),
        ("fine-tune", {"seen": interval(0.4)}),
        ("fine-tune", {"seen": None}),
        ("anchor", {"seen": None, "priors": {"a": interval(0.1), "b": interval(0.0)}}),
        ("anchor", {"most": interval(-0.05), "priors": {"a": interval(0.1)}}),
        ("fine-tune", {"seen": None, "priors": {"a": interval(0.1), "b": interval(-0.1)}}),
        ("fine-tune", {"seen": None, "priors": {"a": interval(0.0)}}),
        ("freeze", {"priors": {"a": interval(-0.1)}}),  # not asked where everything was seen
    ],
)
def test_the_first_reason_decides(way: str | None, change: dict) -> None:
    assert advise(replace(GOOD, **change)).way == way


def test_advice_gives_its_evidence() -> None:
    text = str(advise(replace(GOOD, seen=interval(0.3), priors={"a": interval(0.1), "b": interval(-0.1)})))
    assert text.startswith("fine-tune it: with few labels linear heads score +0.100 [+0.090, +0.110]")
    assert "30% of the target's steps" in text
    assert "help with a of 2 labels and harm with b" in text
    assert "complete collapse" in str(advise(replace(GOOD, collapse="complete collapse")))
    assert "is unknown" in str(advise(replace(GOOD, seen=None)))


LOW, MIDDLE, HIGH = np.full(5, 0.1), np.linspace(0.1, 0.3, 5), np.full(5, 0.9)


def test_hit_rates_by_hand() -> None:
    contests = [
        Contest("a", "jigsaw", "freeze", {"scratch": LOW, "freeze": HIGH}),  # right
        Contest("b", "jigsaw", "scratch", {"scratch": LOW, "freeze": HIGH, "fine-tune": HIGH - 0.01}),  # wrong
        Contest("c", "jigsaw", "scratch", {"scratch": MIDDLE, "freeze": MIDDLE + 0.01}),  # not certainly worse
        Contest("d", "jigsaw", "anchor", {"scratch": LOW, "fine-tune": HIGH}),  # the way like it was right
        Contest("e", "jigsaw", "fine-tune", {"scratch": LOW, "freeze": HIGH}),  # nobody did
        Contest("f", "jigsaw", None, {"scratch": LOW, "freeze": HIGH}),
        Contest("g", "jigsaw", "scratch", {"scratch": LOW}),  # nothing to choose from
    ]
    assert [of.best for of in contests] == ["freeze", "freeze", "freeze", "fine-tune", "freeze", "freeze", "scratch"]
    rates = hit_rates(contests)
    assert list(rates) == ["advice", "always scratch", "always freeze", "always fine-tune", "chance"]
    assert (rates["advice"].best, rates["advice"].not_worse, rates["advice"].contests) == (2 / 4, 3 / 4, 4)
    assert (rates["always scratch"].best, rates["always scratch"].not_worse) == (0, 1 / 4)
    assert (rates["always freeze"].best, rates["always freeze"].contests) == (1, 3)
    # in b the best of fine-tune's runs is below the worst of freeze's: certain, though by little
    assert (rates["always fine-tune"].not_worse, rates["always fine-tune"].contests) == (1 / 2, 2)
    assert rates["chance"].best == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert rates["chance"].not_worse == pytest.approx((1 / 2 + 1 / 3 + 1 + 1 / 2) / 4)


def test_without_a_contest_there_is_no_hit_rate() -> None:
    with pytest.raises(RlpreError, match="no advice can be checked"):
        hit_rates([Contest("a", "jigsaw", None, {"scratch": LOW, "freeze": HIGH})])


def test_runs_too_few_are_never_certainly_worse() -> None:
    contest = Contest("a", "jigsaw", "scratch", {"scratch": LOW[:2], "freeze": HIGH[:2]})
    assert not contest.worse("scratch")
