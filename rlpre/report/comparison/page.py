"""The template of a comparison's page."""

from rlpre.report.comparison.overlap import SECTION
from rlpre.report.comparison.page_why import WHY
from rlpre.report.page import NUMBERS, PROVENANCE

PAGE = (
    NUMBERS
    + """\
{%- macro ratio(found, arm) -%}
  {%- set colour = tone(verdict(found)) if found else "soft" -%}
  <td class="{{ colour }}">
  {%- if found %}{{ numbers(show_ratio(found)) }}{% elif arm == metric.baseline %}baseline{% else %}-{% endif %}
  <td class="forest {{ colour }}">{% if found %}{{ strip(found, reach) }}{% endif %}
{%- endmacro -%}

{%- macro name(arm) %}{{ swatch(arm, metric) }}{{ arm }}{% endmacro -%}

{%- macro image(kind, content, alt) -%}
  <img alt="{{ alt }}" src="data:image/{{ kind }};base64,{{ base64(content) }}">
{%- endmacro -%}

{%- macro profiles() -%}
  {% if overall %}
  <h3>Performance profile</h3>
  <p class="soft">Which share of an arm's runs{% if results | length > 1 %}, over all tasks,{% endif %} scores above a
    value? Higher is better. Bands: 95 % intervals, of {{ metric.baseline }} and {{ metric.answer }}.</p>
  <div class="profiles">{% for svg in profile_charts %}<figure>{{ svg }}</figure>{% endfor %}</div>
  {% endif %}
{%- endmacro -%}

{%- set forest %}<th class="forest">← costs · saves →{% endset -%}

<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ sentence(lead.claim) }}</title>
<style>{{ style }}</style>

<header>
  <p class="eyebrow">How many environment steps did {{ metric.cause }} save?</p>
  <h1 class="{{ tone(lead.verdict) }}">{{ sentence(lead.claim) }}.</h1>
  {% if lead.facts %}<p class="lede">{{ sentence(lead.facts) }}.</p>{% endif %}
  <p class="soft">{{ names.values() | first if results | length == 1 else "%d tasks" | format(results | length) }} ·
    {{ runs }} finished runs · 95 % intervals</p>
  {% if failed or unfinished or missing %}
  <div class="notice">
    {% if unfinished %}<p>Unfinished runs: {{ unfinished }}. This is as far as the study has come.</p>
    {% endif %}
    {% if missing %}<p>Arms without a finished run: {{ missing | join("; ") }}.</p>{% endif %}
    {% if failed %}<p>Failed runs: {{ failed | length }}.</p>
    <ul>{% for run, error in failed.items() %}<li><b>{{ run }}</b> {{ error }}</li>{% endfor %}</ul>{% endif %}
  </div>
  {% endif %}
</header>

{% if results | length > 1 %}
<section id="tasks">
  <h2>Every task</h2>
  <p class="soft">{{ metric.answer }} against {{ metric.baseline }}, to a return of {{ threshold }}.</p>
  <div class="wide"><table>
    <tr><th>task<th>{{ metric.baseline }} / arm{{ forest }}<th>reached<th>answer</tr>
    {% for environment, arms in results.items() %}{% set of = arms.get(metric.answer) %}
    <tr>
      <td><a href="#{{ environment }}">{{ names[environment] }}</a>
        {% if data and environment not in seen %}<small>not in the offline frames</small>{% endif %}
      {{ ratio(of.ratio if of, metric.answer) }}
      <td>{% if of %}{{ reached(of.reached_at) }}{% else %}-{% endif %}
      <td class="words {{ tone(answers[environment].verdict) }}">{{ sentence(answers[environment].claim) }}
    </tr>
    {% endfor %}
  </table></div>
  <h3>All arms over all tasks</h3>
  <div class="wide"><table>
    <tr><th>arm<th>{{ metric.baseline }} / arm{{ forest }}<th>P(better)<th>area<th>final return<th>seeds</tr>
    {% for arm, of in overall.items() %}
    <tr{% if arm == metric.answer %} class="asked"{% endif %}>
      <td>{{ name(arm) }}
      {{ ratio(of.ratio, arm) }}
      <td>{% if of.improvement %}{{ numbers(show_interval(of.improvement)) }}{% else %}-{% endif %}
      <td>{{ numbers(show_interval(of.area)) }}
      <td>{{ numbers(show_interval(of.final)) }}
      <td>{{ of.seeds | length }}
    </tr>
    {% endfor %}
  </table></div>
  {% set partial = metric.arms | reject("in", overall) | list %}
  {% if partial %}<p class="soft">Not on every task yet: {{ partial | join(", ") }}.</p>{% endif %}
  {{ profiles() }}
</section>
{% endif %}

{% for environment, arms in results.items() %}
<section id="{{ environment }}">
  <h2>{{ names[environment] }}</h2>
  <p class="soft">{{ environment }}, {{ thousands(budgets[environment]) }} steps a run
    {%- if data and environment not in seen %}; the encoder has never seen it{% endif %}.</p>
  {% if results | length > 1 %}<p>{{ sentence(answers[environment] | string) }}</p>{% endif %}
  <div class="overview">
    <figure>{{ overview(arms, metric) }}</figure>
    <ul class="legend">{% for arm in arms %}<li>{{ name(arm) }}</li>{% endfor %}
      <li class="soft">IQM over runs; dotted: {{ threshold }}</li></ul>
  </div>
  <h3>Arms</h3>
  <div class="wide"><table>
    <tr><th>arm<th>{{ metric.baseline }} / arm{{ forest }}<th>steps to {{ threshold }}<th>reached<th>P(better)<th>area
      <th>final return<th>frames<th>minutes</tr>
    {% for arm, of in arms.items() %}
    <tr{% if arm == metric.answer %} class="asked"{% endif %}>
      <td>{{ name(arm) }}
      {{ ratio(of.ratio, arm) }}
      <td>{{ numbers(show_interval(of.mean_steps, thousands, ">=" if None in of.reached_at else "")) }}
      <td{% if None in of.reached_at %} class="cost"{% endif %}>{{ reached(of.reached_at) }}
      <td>{% if of.improvement %}{{ numbers(show_interval(of.improvement)) }}{% else %}-{% endif %}
      <td>{{ numbers(show_interval(of.area)) }}
      <td>{{ numbers(show_interval(of.final)) }}
      <td>{% if of.offline_frames %}{{ thousands(of.offline_frames) }}{% else %}-{% endif %}
      <td>{{ "%.1f" | format(of.runs.seconds.mean() / 60) }}
    </tr>
    {% endfor %}
  </table></div>
  {% if results | length == 1 %}{{ profiles() }}{% endif %}
  <h3>Each arm against {{ metric.baseline }}</h3>
  <div class="panels">
    {% for arm in treated(arms, metric) %}
    <figure><figcaption>{{ name(arm) }}</figcaption>{{ against_baseline(arm, arms, metric) }}</figure>
    {% endfor %}
  </div>
  {% if films[environment] %}
  <h3>Final policies</h3>
  <div class="films">
    {% for film in films[environment] %}
    <figure>
      <figcaption><b>{{ film.arm }}</b><br>seed {{ film.seed }}, return {{ "%.2f" | format(film.final) }}</figcaption>
      {% if film.content %}{{ image("gif", film.content, film.arm) }}
      {% else %}<p class="soft">{{ "%.1f" | format(film.megabytes) }} MB, too large for this page</p>{% endif %}
    </figure>
    {% endfor %}
  </div>
  {% endif %}
</section>
{% endfor %}

<section id="pretraining">
  <h2>Pretraining</h2>
  {% if data %}{% for name, of in data.items() %}{% set short = short_names(of.environments) %}
  <h3>Offline frames: {{ name }}</h3>
  <dl>
    <dt>Frames<dd>{{ "{:,}".format(of.frames) }}, of which {{ "{:,}".format(of.distinct) }} are distinct;
      {{ "%.0f" | format(100 * of.unchanged) }} % of the transitions change nothing
    <dt>Behaviour<dd>{{ of.behaviour or "not recorded" }}
    <dt>Environments<dd>{% for environment, frames in of.environments.items() %}{{ short[environment] }}
      ({{ thousands(frames) }}){% if not loop.last %}, {% endif %}{% endfor %}
  </dl>
  {% for environment, strip in of.strips.items() %}
  <figure><figcaption>{{ short[environment] }}</figcaption>
    <div class="frames">{% for frame in strip %}{{ image("png", frame, "offline frame") }}{% endfor %}</div></figure>
  {% endfor %}{% endfor %}
  {% else %}<p>The offline frames are not known: {{ data_problem }}.</p>{% endif %}
  <h3>Encoders</h3>
  {% if pretrained %}
  <p class="soft">Linear probes: what can be read from the frozen features (balanced accuracy; R² for quantities),
    below it the same for fresh weights.
    {% if pretrained | map(attribute="objective") | unique | list | length == pretrained | length %}
    One encoder was pretrained per objective: the intervals above span the seeds of training, not those of pretraining.
    {% else %}
    Every seed pretrained encoders of its own.
    {% endif %}</p>
  <div class="wide"><table>
    <tr><th>objective<th>updates<th>batch<th>seconds{% for label in labels %}<th>{{ label }}{% endfor %}</tr>
    {% for encoder in pretrained %}
    <tr><td>{{ encoder.objective }}<td>{{ encoder.steps }}<td>{{ encoder.batch }}
      <td>{{ "%.0f" | format(encoder.seconds) }}
      {% for label in labels %}
      {% set score, fresh = encoder.probes.get(label), encoder.control.get(label) %}
      <td{% if score is not none and fresh is not none and score < fresh %} class="cost"{% endif %}>
        {%- if score is none %}-{% else %}{{ "%.2f" | format(score) }}{% endif %}
        {%- if fresh is not none %}<small>{{ "%.2f" | format(fresh) }} fresh</small>{% endif %}
      {% endfor %}</tr>
    {% endfor %}
  </table></div>
  {% if not labels %}<p class="soft">No probes were recorded.</p>{% endif %}
  {% else %}<p>What pretraining cost is not known: {{ pretrained_problem }}.</p>{% endif %}
</section>

<section id="reading">
  <h2>Reading the numbers</h2>
  <p>Curves, areas and final returns are interquartile means over runs. The area is the mean height of the learning
    curve. Steps are the mean to the first evaluation of at least {{ threshold }}; a run that never gets there counts as
    its budget, so that its ratio is only a bound (&gt;=, &lt;=), or holds within the budget alone (?).
    {{ metric.baseline }} / arm is how many times the arm's steps {{ metric.baseline }} needs: above 1 the arm saves
    steps. Over several tasks it is the geometric mean. P(better) is the probability that a run of the arm has a larger
    area than one of {{ metric.baseline }}. Frames are the offline ones. Minutes are the wall-clock of a run. Fewer than
    3 runs have no interval.</p>
</section>

"""
    + WHY
    + SECTION
    + PROVENANCE
)
