"""The figures of a study of exposure bias as tables in plain text or Markdown."""

from collections.abc import Callable

from rlpre.report.exposure.answers import judged
from rlpre.report.exposure.figures import Figures, Results
from rlpre.report.exposure.results import Question
from rlpre.report.tables import Rows, aligned, piped
from rlpre.report.words import percent, show, signed

LEGEND = """\
Means over n seeds and the test episodes [95 % interval]; with n<3 there is none. EE, EO, OE, OO: regret errors an
episode up to the horizon; the first letter says whose states (the expert's or its own), the second whose action tokens.
An action is a regret error if it raises the expert's cost to go. excess: OO - EE, in per cent of EE beside it.
interaction: OO - EO - OE + EE. slope: d log AccErr / d log l, 1 without growth in time, 2 at most. alive only: excess
of the errors among the episodes that still run. disagreement: excess of actions that are not the expert's. recovery:
P(right | the step before was wrong) in EE and in OO. nll: of a step in EE and in OO, in nats. gap: success of the
expert - success. Changes are against {0}, pair by pair of seed and episode. removed: the smaller of the falls of OO and
of the excess, over the excess of {0}. harms: success falls, or OO rises and success does not. cures: OO and the excess
fall, at least half of it is removed. reduces: less than half. no effect: anything else. Rises and falls have an
interval that excludes 0. "?": too few resamples give the number to say how sure it is, "-": it is not known.
"""


def text(results: Results, question: Question) -> str:
    """Aligned tables for a terminal, three for each level."""
    return _document(results, question, aligned)


def markdown(results: Results, question: Question) -> str:
    """The same tables in Markdown."""
    return _document(results, question, piped)


def _document(results: Results, question: Question, draw: Callable[[Rows], str]) -> str:
    parts = []
    for level, arms in results.items():
        first = next(iter(arms.values()))
        parts.append(f"{level}, horizon {first.horizon} steps, {first.episodes} test episodes")
        parts.append(draw([ERRORS, *(_errors(arm, of) for arm, of in arms.items())]))
        parts.append(draw([GROWTH, *(_growth(arm, of) for arm, of in arms.items())]))
        changes = [_change(arm, arms[arm]) for arm in judged(question) if arm in arms]
        parts += [draw([CHANGES, *changes])] if changes else []
    return "\n\n".join([*parts, LEGEND.format(question.baseline)])


ERRORS = ["arm", "n", "EE", "EO", "OE", "OO", "excess", "%", "interaction", "dropped", "minutes"]
GROWTH = ["arm", "slope", "alive only", "disagreement", "recovery EE", "OO", "nll EE", "OO", "success", "gap"]
CHANGES = ["arm", "verdict", "OO", "EE", "excess", "removed", "success"]


def _errors(arm: str, figures: Figures) -> list[str]:
    totals = figures.totals["regret error"]
    return [
        arm,
        str(len(figures.seeds)),
        *(show(totals[name]) for name in ("EE", "EO", "OE", "OO", "excess")),
        show(totals["excess percent"], "{:+.0f}".format),
        show(totals["interaction"]),
        str(figures.dropped),
        f"{figures.seconds.mean() / 60:.1f}",
    ]


def _growth(arm: str, figures: Figures) -> list[str]:
    totals = figures.totals["regret error"]
    ends = ("EE", "OO")
    return [
        arm,
        show(totals["slope"]),
        show(totals["excess alive"]),
        show(figures.totals["error"]["excess"]),
        *(show(figures.recovery[name]) for name in ends),
        *(show(figures.nll[name]) for name in ends),
        show(figures.success["OO"]),
        show(figures.success["gap"]),
    ]


def _change(arm: str, figures: Figures) -> list[str]:
    found = figures.change
    if found is None:
        return [arm, "no verdict", *["-"] * 5]
    removed = "-" if found.removed is None else percent(found.removed)
    changes = signed(found.free), signed(found.forced), signed(found.excess), removed, signed(found.success)
    return [arm, found.verdict, *changes]
