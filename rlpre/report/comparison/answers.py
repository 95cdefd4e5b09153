"""How many environment steps did pretraining save? In words."""

from rlpre.measure.stats import FEWEST, StepsRatio
from rlpre.report.comparison.overall import Overall
from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.words import Answer, short_names, show_interval, show_ratio, thousands

SAVED, COST, UNKNOWN, NONE = "saved", "cost", "not known", "no answer"


def answer(arms: dict[str, Figures], metric: Metric) -> Answer:
    """The answer in one environment."""
    missing = [arm for arm in (metric.baseline, metric.answer) if arm not in arms]
    if missing:
        return Answer(NONE, f"no answer, {' and '.join(missing)} has no finished run", "")
    baseline, treated = arms[metric.baseline], arms[metric.answer]
    saved, budget = treated.ratio, thousands(treated.runs.steps[-1])
    if saved is None or saved.baseline_reached + saved.treated_reached == 0:
        both = f"no run of {metric.baseline} or {metric.answer}"
        return Answer(NONE, f"no answer, {both} reached {metric.threshold:g} in {budget} steps", "")
    slow, fast = thousands(baseline.mean_steps.value), thousands(treated.mean_steps.value)
    runs = [reached(arm.reached_at) for arm in (baseline, treated)]
    facts = (
        f"to reach {metric.threshold:g}, {metric.baseline} needs {show_ratio(saved)} times the steps of "
        f"{metric.answer} ({slow} and {fast}; {runs[0]} and {runs[1]} runs reach it in {budget})"
    )
    if saved.ratio.low is None or saved.ratio.high is None:
        return Answer(NONE, f"no answer, fewer than {FEWEST} runs of an arm say nothing about the next ones", facts)
    paid = treated.offline_frames - baseline.offline_frames
    cost = f", after {thousands(paid)} offline frames" if paid > 0 else ""
    found = verdict(saved)
    if found == UNKNOWN:
        return Answer(found, "not known, the interval does not exclude 1", facts + cost)
    difference = thousands(abs(baseline.mean_steps.value - treated.mean_steps.value))
    least = "at least " if saved.bound in (">=", "<=") else ""
    return Answer(found, f"{metric.cause} {found} {least}{difference} environment steps", facts + cost)


def overall_answer(results: Results, overall: dict[str, Overall], metric: Metric) -> Answer:
    """The answer over several environments: in how many, where, and how much on the whole."""
    names = short_names(results)
    found = {names[environment]: answer(arms, metric).verdict for environment, arms in results.items()}
    where = {kind: [name for name, other in found.items() if other == kind] for kind in (SAVED, COST, UNKNOWN, NONE)}
    facts = "; ".join(f"{kind} on {', '.join(tasks)}" for kind, tasks in where.items() if tasks)
    ratio = overall[metric.answer].ratio if metric.answer in overall else None
    if ratio:
        mean = show_interval(ratio.ratio, bound=ratio.bound.strip("?"))
        mean += " times the steps of" if ratio.bound != "?" else " times the steps, within the budgets, of"
        facts += f"; to reach {metric.threshold:g} on all tasks, {metric.baseline} needs {mean} {metric.answer}"
    if len(where[NONE]) == len(results):
        return Answer(NONE, f"no answer on any of {len(results)} tasks", facts)
    claim = f"{metric.cause} saved environment steps on {len(where[SAVED]) or 'none'} of {len(results)} tasks"
    claim += f" and cost steps on {len(where[COST])}" if where[COST] else ""
    return Answer(verdict(ratio) if ratio else NONE, claim, facts)


def answers(results: Results, overall: dict[str, Overall], metric: Metric) -> dict[str, Answer]:
    """The answers by environment; with several of them "overall" comes first."""
    found = {environment: answer(arms, metric) for environment, arms in results.items()}
    return found if len(found) == 1 else {"overall": overall_answer(results, overall, metric), **found}


def verdict(saved: StepsRatio) -> str:
    """What the interval of a ratio allows to say; a bound leaves one of its ends open."""
    if saved.ratio.low is None or saved.ratio.high is None:
        return NONE
    if saved.ratio.low > 1 and saved.bound != "<=":
        return SAVED
    if saved.ratio.high < 1 and saved.bound != ">=":
        return COST
    return UNKNOWN


def reached(steps: tuple[int | None, ...]) -> str:
    """How many runs reached the threshold, as "2/3"."""
    return f"{sum(step is not None for step in steps)}/{len(steps)}"
