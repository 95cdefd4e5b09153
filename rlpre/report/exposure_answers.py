"""Is there exposure bias, and what corrects it? In words."""

import math
from collections.abc import Callable

from rlpre.measure.stats import FEWEST, Interval
from rlpre.measure.verdict import CURES, HARMS, NONE, NOTHING, REDUCES, Change, above, below
from rlpre.report.answers import Answer, show_interval
from rlpre.report.exposure_figures import Figures, Results
from rlpre.report.exposure_results import CLONE, CORRECTION, Question
from rlpre.report.results import short_names

MEASURED, NOT_MEASURED, CURED = "measured", "not measured", "cured"
FEW = f"fewer than {FEWEST} seeds say nothing about the next ones"
UNKNOWN = "the regret was not measured at every step"
CLAIMS = {
    CURES: "{} cures exposure bias",
    REDUCES: "{} reduces exposure bias",
    NOTHING: "{} has no measured effect on exposure bias",
    HARMS: "{} harms",
    NONE: "no verdict on {}",
}


def level_answer(arms: dict[str, Figures], question: Question) -> Answer:
    """Does the baseline show exposure bias on one level?"""
    if question.baseline not in arms:
        return Answer(NONE, f"no answer, {question.baseline} has no finished run", "")
    figures = arms[question.baseline]
    totals = figures.totals["regret error"]
    excess, steps = totals["excess"], figures.runs.sample.steps.shape[-1]
    facts = (
        f"in {steps} steps {question.baseline} makes {totals['OO'].value:.2f} regret errors an episode on its own and "
        f"{totals['EE'].value:.2f} teacher-forced, an excess of {show(excess)}"
        f"{_percent(totals['excess percent'])}; it succeeds in {figures.success['OO'].value:.0%} of the episodes, the "
        f"expert in {figures.success['EE'].value:.0%}"
    )
    if excess.low is None:
        return Answer(NONE, f"no answer, {_why_unknown(excess)}", facts)
    if above(excess):
        return Answer(MEASURED, "exposure bias is measured", facts)
    why = "it errs less on its own" if below(excess) else "the interval of the excess contains 0"
    return Answer(NOT_MEASURED, f"no exposure bias is measured, {why}", facts)


def change_answer(arm: str, figures: Figures | None, question: Question) -> Answer:
    """What one arm did to the exposure bias of the baseline on one level."""
    if figures is None or figures.change is None:
        lacking = f"{arm} has no finished run" if figures is None else f"no seed in common with {question.baseline}"
        return Answer(NONE, f"{CLAIMS[NONE].format(arm)}, {lacking}", "")
    found = figures.change
    removed = "" if found.removed is None else f", of which {found.removed:.0%} is removed"
    facts = (
        f"regret errors an episode change by {signed(found.free)} on its own and by {signed(found.forced)} "
        f"teacher-forced, the excess of {found.before.value:.2f} by {signed(found.excess)}{removed}; success by "
        f"{signed(found.success)}"
    )
    return Answer(found.verdict, f"{CLAIMS[found.verdict].format(arm)}, {reason(found)}", facts)


def arm_answer(arm: str, results: Results, question: Question) -> Answer:
    """The verdict on one arm over all levels; its kind is that of the levels with exposure bias, if they agree."""
    found = {
        name: change_answer(arm, results[level].get(arm), question) for level, name in short_names(results).items()
    }
    if len(found) == 1:
        return next(iter(found.values()))
    where = {kind: [name for name, answer in found.items() if answer.verdict == kind] for kind in CLAIMS}
    said = [(kind, f"{_SHORT[kind]} on {', '.join(names)}") for kind, names in where.items() if names]
    return Answer(said[0][0], f"{arm}: {'; '.join(part for _, part in said)}", "")


def overall_answer(results: Results, question: Question) -> Answer:
    """On how many levels was exposure bias measured, and on how many cured?"""
    names = short_names(results)
    biased = [level for level, arms in results.items() if level_answer(arms, question).verdict == MEASURED]
    unknown = [level for level, arms in results.items() if level_answer(arms, question).verdict == NONE]
    if len(unknown) == len(results):
        return Answer(
            NONE, "no answer yet on exposure bias", level_answer(next(iter(results.values())), question).claim
        )
    cures = {level: [arm for arm in judged(question) if _verdict(results[level], arm) == CURES] for level in biased}
    cured = [level for level in biased if any(question.arms[arm] == CORRECTION for arm in cures[level])]
    if len(results) == 1:
        claim = f"exposure bias is measured on {names[biased[0]]}" if biased else "no exposure bias is measured"
        claim += (
            (" and cured" if cured else ", and nothing cures it") if biased else f" on {next(iter(names.values()))}"
        )
    else:
        claim = f"exposure bias is measured on {len(biased) or 'none'} of {len(results)} levels"
        claim += f", and cured on {len(cured) or 'none'}" if biased else ""
    facts = [
        f"{' and '.join(arms)} cure{'s' * (len(arms) == 1)} it on {names[of]}" for of, arms in cures.items() if arms
    ]
    verdict = CURED if cured else MEASURED if biased else NOT_MEASURED
    return Answer(verdict, claim, "; ".join(facts))


def judged(question: Question) -> list[str]:
    """The arms that get a verdict."""
    return [arm for arm, kind in question.arms.items() if kind != CLONE]


def reason(found: Change) -> str:
    """Why the verdict is what it is."""
    if found.verdict == NONE:
        return _why_unknown(found.free)
    if found.verdict == HARMS:
        return "it errs more on its own" if above(found.free) else "success falls"
    if found.verdict == NOTHING:
        return _why_nothing(found)
    return f"{found.removed:.0%} of the excess is removed"


def show(figure: Interval, form: Callable[[float], str] = "{:.2f}".format) -> str:
    """A figure with its interval; "-" if it is not known, "?" if its interval is not, whatever the number of seeds."""
    if math.isnan(figure.value):
        return "-"
    return f"{form(figure.value)} (?)" if figure.low is None and figure.n >= FEWEST else show_interval(figure, form)


def signed(figure: Interval) -> str:
    """A change with its interval."""
    return show(figure, "{:+.2f}".format)


def _why_nothing(found: Change) -> str:
    if found.removed is None:
        return "there is no excess to remove"
    if below(found.free):
        return "it errs less on its own, and teacher-forced too"
    if below(found.excess):
        return "the excess falls only because it errs more teacher-forced"
    return "the intervals of the changes contain 0"


def _why_unknown(figure: Interval) -> str:
    return FEW if figure.n < FEWEST else UNKNOWN


def _percent(figure: Interval) -> str:
    return "" if math.isnan(figure.value) else f" ({figure.value:+.0f} %)"


def _verdict(arms: dict[str, Figures], arm: str) -> str:
    found = arms[arm].change if arm in arms else None
    return found.verdict if found else NONE


_SHORT = {
    CURES: "cures it",
    REDUCES: "reduces it",
    NOTHING: "no effect",
    HARMS: "harms",
    NONE: "no verdict",
}
