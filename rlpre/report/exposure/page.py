"""A study of exposure bias as one web page that stands alone; ``PAGE`` is its template."""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rlpre.measure.stats import Interval
from rlpre.measure.verdict import CURES, HARMS, REDUCES
from rlpre.report import facts
from rlpre.report.exposure.answers import (
    CURED,
    MEASURED,
    arm_answer,
    change_answer,
    judged,
    level_answer,
    overall_answer,
    reason,
)
from rlpre.report.exposure.figures import Figures, Results
from rlpre.report.exposure.plots import NAMES, STYLES, draw_accumulated, draw_errors, draw_turns
from rlpre.report.exposure.results import CONTROL, Question
from rlpre.report.page import NUMBERS, PROVENANCE, write_page
from rlpre.report.svg import HALF, bar, stroke, svg
from rlpre.report.words import Answer, percent, short_names, show, signed

TONES = {CURED: "saved", CURES: "saved", REDUCES: "saved", MEASURED: "cost", HARMS: "cost"}


def write_exposure_page(directory: Path, results: Results, question: Question) -> None:
    """Writes ``report.html``, which loads nothing.

    Args:
        directory: the study; a run may hold ``run.json``.
        results: the figures by level.
        question: what the study asks.
    """
    names = short_names(results)
    missing = {names[level]: [arm for arm in question.arms if arm not in arms] for level, arms in results.items()}
    content = {
        "results": results,
        "question": question,
        "names": names,
        "lead": overall_answer(results, question),
        "levels": {level: level_answer(arms, question) for level, arms in results.items()},
        "verdicts": {arm: arm_answer(arm, results, question) for arm in judged(question)},
        "runs": sum(len(of.seeds) for arms in results.values() for of in arms.values()),
        "missing": [f"{', '.join(arms)} on {level}" for level, arms in missing.items() if arms]
        + [f"every arm on {level}" for level in question.horizons if level not in results],
        "failed": facts.read_failed(directory),
        "unfinished": facts.count_unfinished(directory),
        "provenance": facts.read_provenance(directory),
    }
    write_page(directory, PAGE, _TOOLS, content)


def _judge(arms: dict[str, Figures], arm: str, question: Question) -> Answer:
    return change_answer(arm, arms.get(arm), question)


def _panels(level: str, figures: Figures) -> list[tuple[str, Markup]]:
    """Titles and charts of one policy."""
    turns = figures.turns
    every: list[tuple[str, Any]] = [
        ("Regret errors by step", lambda axes: draw_errors(axes, figures, "regret error")),
        ("Disagreement with the expert by step", lambda axes: draw_errors(axes, figures, "error")),
        ("Accumulated error", lambda axes: draw_accumulated(axes, figures)),
    ]
    if turns:
        every.append(("Taking turns", lambda axes: draw_turns(axes, turns)))
    return [(title, svg(HALF, f"{title} on {level}", draw)) for title, draw in every]


def _reach(arms: dict[str, Figures]) -> float:
    """How far from 0 the strips of a level must reach."""
    changes = [of.change.excess for of in arms.values() if of.change]
    ends = [abs(end) for figure in changes for end in (figure.value, figure.low, figure.high) if end is not None]
    return 1.1 * max([end for end in ends if np.isfinite(end)], default=1.0) or 1.0


def _strip(figure: Interval, reach: float) -> Markup:
    """A change and its interval on an axis from -reach to reach."""
    if not np.isfinite(figure.value):
        return Markup()
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    return bar(low / reach, figure.value / reach, high / reach, signed(figure))


_TOOLS: dict[str, Any] = {
    "tone": lambda found: TONES.get(found, "open"),
    "control": CONTROL,
    "strokes": STYLES,
    "contexts": NAMES,
    "stroke": stroke,
    "panels": _panels,
    "strip": _strip,
    "reach": _reach,
    "judge": _judge,
    "reason": reason,
    "percent": percent,
    "show": show,
    "signed": signed,
}

PAGE = (
    NUMBERS
    + """\
{%- macro cell(figure, signs=false) %}{{ numbers(signed(figure) if signs else show(figure)) }}{% endmacro -%}

<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ sentence(lead.claim) }}</title>
<style>{{ style }}
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: 0 0 1rem; font-size: .88rem; }
h2 + .wide + p { margin-top: 1.25rem; }
</style>

<header>
  <p class="eyebrow">Is there exposure bias, and what corrects it?</p>
  <h1 class="{{ tone(lead.verdict) }}">{{ sentence(lead.claim) }}.</h1>
  {% if lead.facts %}<p class="lede">{{ sentence(lead.facts) }}.</p>{% endif %}
  <p class="soft">{{ names.values() | first if results | length == 1 else "%d levels" | format(results | length) }} ·
    {{ runs }} finished runs · 95 % intervals</p>
  {% if failed or unfinished or missing %}
  <div class="notice">
    {% if unfinished %}<p>Unfinished runs: {{ unfinished }}. This is as far as the study has come.</p>{% endif %}
    {% if missing %}<p>Without a finished run: {{ missing | join("; ") }}.</p>{% endif %}
    {% if failed %}<p>Failed runs: {{ failed | length }}.</p>
    <ul>{% for run, error in failed.items() %}<li><b>{{ run }}</b> {{ error }}</li>{% endfor %}</ul>{% endif %}
  </div>
  {% endif %}
</header>

<section id="verdicts">
  <h2>Verdicts</h2>
  <div class="wide"><table>
    <tr><th>arm{% for level in results %}<th><a href="#{{ level }}">{{ names[level] }}</a>{% endfor %}<th>in words</tr>
    {% for arm, answer in verdicts.items() %}
    <tr><td>{{ arm }}{% if question.arms[arm] == control %}<small>control</small>{% endif %}
      {% for arms in results.values() %}{% set found = judge(arms, arm, question) %}
      <td class="{{ tone(found.verdict) }}">{{ found.verdict }}
      {% endfor %}
      <td class="words">{{ answer }}</tr>
    {% endfor %}
  </table></div>
  <p class="soft">The rule, fixed before anything was measured. Errors are regret errors an episode; the excess is
    OO - EE; changes are against {{ question.baseline }}, pair by pair of seed and episode; something rises or falls
    if its 95 % interval excludes 0. <b>Harms:</b> success falls, or OO rises and success does not. <b>Cures:</b> OO
    and the excess fall, and the smaller of the two falls is at least half of the excess of {{ question.baseline }}.
    <b>Reduces:</b> it is less than half. <b>No effect:</b> anything else, also where {{ question.baseline }} shows
    no excess; it says that none was measured, not that there is none.</p>
</section>

{% for level, arms in results.items() %}{% set one = arms.values() | first %}
<section id="{{ level }}">
  <h2>{{ names[level] }}</h2>
  <p class="soft">{{ level }}, {{ one.episodes }} test episodes, errors up to step {{ one.horizon }}.</p>
  {% if results | length > 1 %}<p>{{ sentence(levels[level] | string) }}</p>{% endif %}
  {% if question.baseline in arms %}
  <h3>{{ question.baseline }}</h3>
  <p class="keys">{% for context, (colour, dashes) in strokes.items() %}
    <span>{{ stroke(colour, dashes) }}{{ contexts[context] }}</span>
    {% endfor %}</p>
  <div class="profiles">
    {% for title, chart in panels(level, arms[question.baseline]) %}
    <figure><figcaption>{{ title }}</figcaption>{{ chart }}</figure>
    {% endfor %}
  </div>
  {% endif %}
  <h3>Regret errors an episode</h3>
  <div class="wide"><table>
    <tr><th>arm<th>seeds<th>EE<th>EO<th>OE<th>OO<th>excess<th>%<th>interaction<th>success<th>minutes</tr>
    {% for arm, of in arms.items() %}{% set totals = of.totals["regret error"] %}
    <tr{% if arm == question.baseline %} class="asked"{% endif %}>
      <td>{{ arm }}<td>{{ of.seeds | length }}
      {% for name in ["EE", "EO", "OE", "OO", "excess"] %}<td>{{ cell(totals[name]) }}{% endfor %}
      <td>{{ numbers(show(totals["excess percent"], "{:+.0f}".format)) }}
      <td>{{ cell(totals["interaction"]) }}
      <td>{{ cell(of.success["OO"]) }}
      <td>{{ "%.1f" | format(of.seconds.mean() / 60) }}</tr>
    {% endfor %}
  </table></div>
  {% if arms.values() | selectattr("change") | list %}
  <h3>Changes against {{ question.baseline }}</h3>
  <div class="wide"><table>
    <tr><th>arm<th>verdict<th>excess<th class="forest">← less · more →<th>removed<th>OO<th>EE<th>success</tr>
    {% for arm, of in arms.items() if of.change %}
    <tr><td>{{ arm }}{% if question.arms[arm] == control %}<small>control</small>{% endif %}
      <td class="{{ tone(of.change.verdict) }}">{{ of.change.verdict }}<small>{{ reason(of.change) }}</small>
      <td>{{ cell(of.change.excess, true) }}
      <td class="forest {{ tone(of.change.verdict) }}">{{ strip(of.change.excess, reach(arms)) }}
      <td>{{ "-" if of.change.removed is none else percent(of.change.removed) }}
      <td>{{ cell(of.change.free, true) }}<td>{{ cell(of.change.forced, true) }}<td>{{ cell(of.change.success, true) }}
    </tr>
    {% endfor %}
  </table></div>
  {% endif %}
  <details><summary>Growth, recovery, likelihood</summary>
  <div class="wide"><table>
    <tr><th>arm<th>slope<th>excess, alive only<th>excess of disagreement<th>recovery EE<th>OO<th>nll EE<th>OO
      <th>success gap<th>dropped</tr>
    {% for arm, of in arms.items() %}
    <tr><td>{{ arm }}<td>{{ cell(of.totals["regret error"]["slope"]) }}
      <td>{{ cell(of.totals["regret error"]["excess alive"]) }}<td>{{ cell(of.totals["error"]["excess"]) }}
      {% for figures in [of.recovery, of.nll] %}<td>{{ cell(figures["EE"]) }}<td>{{ cell(figures["OO"]) }}{% endfor %}
      <td>{{ cell(of.success["gap"]) }}<td>{{ of.dropped }}</tr>
    {% endfor %}
  </table></div></details>
</section>
{% endfor %}

<section id="reading">
  <h2>Reading the numbers</h2>
  <p>The same policy is asked at every step of the same test episodes in four contexts. The first letter says whose
    states it sees, the second whose action tokens stand in its history: the expert's (E) or its own (O; in OE those
    that the expert would have chosen there). EE is teacher forcing, OO is acting. OO - EE is the excess, EO - EE what
    comes through the history, OE - EE through the states, and the interaction is what neither does alone.</p>
  <p>A regret error is an action that raises the expert's cost to go; a disagreement one that is not the expert's,
    though it may be as good. Errors are added up over the episode, in which nothing goes wrong any more after its end
    (padded); "alive only" adds up the shares of the episodes that still run. AccErr(l) is the sum up to step l over the
    mean error of a teacher-forced step: l if errors do not accumulate, at most l squared. Its slope is fitted while OO
    has made less than 0.3 errors; 1 means excess that does not grow with time. Recovery is the share of errors after
    which the next step is right. Likelihoods are in nats.</p>
  <p>Intervals span seeds and test episodes, which all seeds share. Fewer than 3 seeds have none. Each stands at 95 %
    for itself: of twenty comparisons without an effect, one excludes 0.</p>
</section>

"""
    + PROVENANCE
)
