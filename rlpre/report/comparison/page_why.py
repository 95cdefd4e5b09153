"""The section of a comparison's page on causes: gains by task, features, two causes, and numbers of frames."""

WHY = """\
{%- macro grid(rows) -%}
  <div class="wide"><table>
    <tr>{% for cell in rows[0] %}<th>{{ cell }}{% endfor %}</tr>
    {% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}{% endfor %}</tr>{% endfor %}
  </table></div>
{%- endmacro -%}

{% if why.gains or why.measured %}
<section id="why">
  <h2>Why</h2>
  {% if why.gains %}
  <h3>Gain by task</h3>
  <p class="soft">How many times the steps of {{ metric.answer }} each control needs. A task is won or lost where the
    interval excludes 1. Probes: mean score over labels of what a linear probe reads from the frozen features.</p>
  {{ grid(gain_rows(why.gains, metric)) }}
  {% endif %}
  {% for environment, found in why.causes.items() %}
  <h3>Start and conditioning: {{ environment }}</h3>
  <p>{{ sentence(cause_sentence(found)) }}.</p>
  {% endfor %}
  {% for environment in why.sizes %}
  <h3>Different offline frames: {{ environment }}</h3>
  <div class="profiles">
    {% for svg in scaling_charts(environment, results, why, metric) %}<figure>{{ svg }}</figure>{% endfor %}
  </div>
  {% endfor %}
  {% for environment, encoders in why.measured.items() %}
  <h3>Features of frozen encoders: {{ environment }}</h3>
  <p class="soft">On frames of worlds that no encoder was pretrained in. Condition number: largest variance of the
    features / smallest, over the directions in which they vary; the rest are scores of linear probes.</p>
  {{ grid(feature_rows(encoders)) }}
  {% endfor %}
</section>
{% endif %}

"""
