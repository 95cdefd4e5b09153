"""Is there exposure bias, and what corrects it? In words."""

import math

from rlpre.measure.stats import FEWEST
from rlpre.measure.verdict import CURES, HARMS, NONE, NOTHING, REDUCES, Change, above, below
from rlpre.report.exposure.figures import Figures, Results
from rlpre.report.exposure.results import CLONE, CORRECTION, Question
from rlpre.report.words import Answer, percent, short_names, show, signed

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
SHORT = {
    CURES: "cures it",
    REDUCES: "reduces it",
    NOTHING: "no effect",
    HARMS: "harms",
    NONE: "no verdict",
}


def level_answer(arms: dict[str, Figures], question: Question) -> Answer:
    """Does the baseline show exposure bias on one level?"""
    if question.baseline not in arms:
        return Answer(NONE, f"no answer, {question.baseline} has no finished run", "")
    figures = arms[question.baseline]
    totals = figures.totals["regret error"]
    excess, more = totals["excess"], totals["excess percent"]
    if math.isnan(excess.value):
        return Answer(NONE, f"no answer, {UNKNOWN}", "")
    relative = "" if math.isnan(more.value) else f" ({more.value:+.0f} %)"
    growth = "" if math.isnan(totals["slope"].value) else f" with a slope of {show(totals['slope'])}"
    facts = (
        f"in {figures.horizon} steps {question.baseline} makes {totals['OO'].value:.2f} regret errors an episode on "
        f"its own and {totals['EE'].value:.2f} teacher-forced, an excess of {show(excess)}{relative}{growth}; "
        f"it succeeds in {percent(figures.success['OO'].value)} of the episodes, the expert in "
        f"{percent(figures.success['EE'].value)}"
    )
    if excess.low is None:
        return Answer(NONE, f"no answer, {FEW}", facts)
    if above(excess):
        return Answer(MEASURED, "exposure bias is measured", facts)
    why = "it errs less on its own" if below(excess) else "the interval of the excess contains 0"
    return Answer(NOT_MEASURED, "no exposure bias is measured", f"{facts}; {why}")


def change_answer(arm: str, figures: Figures | None, question: Question) -> Answer:
    """What one arm did to the exposure bias of the baseline on one level."""
    if figures is None or figures.change is None:
        lacking = f"{arm} has no finished run" if figures is None else f"no seed in common with {question.baseline}"
        return Answer(NONE, f"{CLAIMS[NONE].format(arm)}, {lacking}", "")
    found = figures.change
    if math.isnan(found.excess.value):
        return Answer(NONE, f"{CLAIMS[NONE].format(arm)}, {UNKNOWN}", "")
    removed = "" if found.removed is None else f", of which {percent(found.removed)} is removed"
    facts = (
        f"regret errors an episode change by {signed(found.free)} on its own and by {signed(found.forced)} "
        f"teacher-forced, the excess of {found.before.value:.2f} by {signed(found.excess)}{removed}; success by "
        f"{signed(found.success)}"
    )
    return Answer(found.verdict, f"{CLAIMS[found.verdict].format(arm)}, {reason(found)}", facts)


def arm_answer(arm: str, results: Results, question: Question) -> Answer:
    """The verdicts on one arm over all levels; the first of `CLAIMS` that was given is the answer's."""
    found = {
        name: change_answer(arm, results[level].get(arm), question) for level, name in short_names(results).items()
    }
    if len(found) == 1:
        return next(iter(found.values()))
    where = {kind: [name for name, answer in found.items() if answer.verdict == kind] for kind in CLAIMS}
    said = [(kind, f"{SHORT[kind]} on {', '.join(names)}") for kind, names in where.items() if names]
    return Answer(said[0][0], f"{arm}: {'; '.join(part for _, part in said)}", "")


def overall_answer(results: Results, question: Question) -> Answer:
    """On how many levels was exposure bias measured, and on how many cured?"""
    names = short_names(results)
    found = {level: level_answer(arms, question) for level, arms in results.items()}
    biased, unknown = ([level for level in found if found[level].verdict == kind] for kind in (MEASURED, NONE))
    cures = {level: [arm for arm in judged(question) if _verdict(results[level], arm) == CURES] for level in biased}
    cured = [level for level in biased if any(question.arms[arm] == CORRECTION for arm in cures[level])]
    facts = [
        f"{' and '.join(arms)} cure{'s' * (len(arms) == 1)} it on {names[of]}" for of, arms in cures.items() if arms
    ]
    if len(found) == 1:
        ((level, one),) = found.items()
        claim = one.claim if unknown else f"{one.claim} on {names[level]}"
        claim += f", and {'' if cured else 'not '}cured" if biased else ""
        facts = [one.facts, *facts] if one.facts else facts
    else:
        claim = f"exposure bias is measured on {len(biased) or 'none'} of {len(found)} levels"
        claim += f", and cured on {len(cured) or 'none'}" if biased else ""
        facts += [f"no answer on {', '.join(names[level] for level in unknown)}"] if unknown else []
    verdict = CURED if cured else MEASURED if biased else NONE if unknown else NOT_MEASURED
    return Answer(verdict, claim, "; ".join(facts))


def judged(question: Question) -> list[str]:
    """The arms that get a verdict."""
    return [arm for arm, kind in question.arms.items() if kind != CLONE]


def reason(found: Change) -> str:
    """Why the verdict is what it is."""
    if found.verdict == NONE:
        return UNKNOWN if math.isnan(found.excess.value) else FEW
    if found.verdict == HARMS:
        return "success falls" if below(found.success) else "it errs more on its own"
    if found.verdict == NOTHING:
        return _why_nothing(found)
    return "at least half of the excess is removed" if found.verdict == CURES else "less than half of it is removed"


def _why_nothing(found: Change) -> str:
    if found.removed is None:
        return "there is no excess to remove"
    if above(found.free):
        return "it errs more on its own, and succeeds more"
    if below(found.free):
        return "it errs less on its own, and teacher-forced too"
    if below(found.excess):
        return "the excess falls only because it errs more teacher-forced"
    return "neither its errors on its own nor the excess surely fall"


def _verdict(arms: dict[str, Figures], arm: str) -> str:
    found = arms[arm].change if arm in arms else None
    return found.verdict if found else NONE
