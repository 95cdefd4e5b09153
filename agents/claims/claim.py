"""A claim about pretraining, what was measured of it, and the rule that turns the figure into a verdict."""

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from rlpre.evaluation.page import plain_axes, show_interval
from rlpre.evaluation.stats import Interval, mean_interval

Answer = Literal["supported", "not supported", "undecided"]
RESULTS = Path(__file__).parents[2] / "results"  # of the larger studies


@dataclass(frozen=True)
class Verdict:
    """What one measurement says about a claim."""

    figure: Interval
    control: str  # the figure of the control, as text
    verdict: Answer
    measured: str  # what the figure is, in one sentence
    picture: Figure | None = None


@dataclass(frozen=True)
class Claim:
    """A claim that a measurement can refute.

    Attributes:
        number: in the table.
        text: the claim in one sentence.
        measure: called with an empty directory for its files and the number of seeds.
        control: what would look the same if the claim were wrong, in a few words.
        study: what a larger study found, see `answer_of`; empty if there is none.
        needs: what the claim would need to hold, where it is not supported.
    """

    number: int
    text: str
    measure: Callable[[Path, int], Verdict]
    control: str
    study: str = ""
    needs: str = ""


def verdict_from(figure: Interval, null: float, meaningful: float) -> Answer:
    """The verdict on a claim that says that a figure is above ``null``.

    Args:
        figure: with its interval, over seeds.
        null: the figure without any effect.
        meaningful: the smallest gain over ``null`` that would matter, above 0.

    Returns:
        "supported" if the interval lies above ``null``, "not supported" if it excludes a meaningful gain, else
        "undecided"; without an interval always the last.
    """
    if figure.low is None or figure.high is None:
        return "undecided"
    if figure.low > null:
        return "supported"
    return "not supported" if figure.high < null + meaningful else "undecided"


def judge(
    treated: Sequence[float],
    control: Sequence[float],
    meaningful: float,
    measured: str,
    named: str,
    picture: Figure | None = None,
) -> Verdict:
    """Compares scores with those of a control, pair by pair of seed: the figure is the mean gain.

    Args:
        treated: a score for each seed.
        control: the same, for the same seeds.
        meaningful: the smallest gain that would matter.
        measured: what the gain is, in one sentence.
        named: the control in a few words.
        picture: default: the scores of both, a line for each seed.
    """
    gain = mean_interval([ours - theirs for ours, theirs in zip(treated, control, strict=True)])
    shown = f"{named} {show_interval(mean_interval(control))}, claimed {show_interval(mean_interval(treated))}"
    picture = picture or draw_pairs(treated, control, named)
    return Verdict(gain, shown, verdict_from(gain, 0.0, meaningful), measured, picture)


def draw_pairs(treated: Sequence[float], control: Sequence[float], named: str) -> Figure:
    """One line for each seed, from the control's score to the claimed one."""
    figure = Figure(figsize=(3.2, 2.2), layout="constrained")
    panel = figure.subplots()
    panel.plot([control, treated], color="#0072B2", marker="o", alpha=0.7)
    panel.set_xticks([0, 1], [textwrap.fill(named, 20), "claimed"])
    panel.set_xlim(-0.3, 1.3)
    plain_axes(panel)
    return figure


def answer_of(study: str, arm: str = "", over: str = "scratch") -> str:
    """What a comparison in ``results/`` says, and where it stands.

    Args:
        study: the folder.
        arm: of the comparison; empty: the answer of the whole study.
        over: the arm that it is compared with.
    """
    summary = json.loads((RESULTS / study / "summary.json").read_text())
    if not arm:
        return f"{summary['answer']} (results/{study})"
    *_, row = (each for each in summary["records"] if (each["arm"], each["over"]) == (arm, over))  # last: all tasks
    high = math.inf if row["bound"] == ">=" and row["low"] is not None else row["high"]
    ratio = show_interval(Interval(row["ratio"], row["low"], high, row["n"]), bound=row["bound"])
    return f"environment steps to the threshold, {over} / {arm}: {ratio} (results/{study})"
