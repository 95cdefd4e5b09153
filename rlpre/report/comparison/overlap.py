"""What a report says of the overlap of offline frames with the tasks."""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rlpre.errors import RlpreError
from rlpre.files import read_json
from rlpre.measure.overlap import ALIKE, CELLS, Overlap
from rlpre.measure.stats import Interval
from rlpre.report.words import show_interval

OVERLAP = "overlap.json"  # beside a study: by data set, `Overlap` by environment, or why it could not be measured

SECTION = """\
{% if overlap %}
<section id="overlap">
  <h2>Seen before</h2>
  <p>How much of what an agent meets do the offline frames hold already? Shares of the steps (layouts: of the episodes)
    of fresh episodes, half at random and half by a noisy expert where there is one. Where they are high, the results
    show speed on what was seen, not generalisation.</p>
  {% for name, tasks in overlap.items() %}
  <h3>Offline frames: {{ name }}</h3>
  {% if tasks is string %}<p>Not measured: {{ tasks }}.</p>
  {% else %}
  <div class="wide"><table>
    <tr><th>task{% for heading in overlap_columns(tasks.values() | first) %}<th>{{ heading }}{% endfor %}</tr>
    {% for environment, of in tasks.items() %}
    <tr><td>{{ environment }}
      {% for share in overlap_columns(of).values() %}<td>{{ numbers(share) }}{% endfor %}</tr>
    {% endfor %}
  </table></div>
  {% set untold = tasks.values() | map(attribute="untold") | select | list %}
  {% if untold %}<p class="soft">States and layouts cannot be told: {{ untold[0] }}.</p>{% endif %}
  {% endif %}
  {% endfor %}
</section>
{% endif %}

"""


def columns(of: Overlap) -> dict[str, str]:
    """The shares of a task by heading; likeness only if an encoder judged it."""
    shares = {"state": of.state, "layout": of.layout, "observation": of.observation}
    for cells, share in zip_longest(range(1, CELLS + 1), of.near):
        shares[f"{cells} cell{'s' * (cells > 1)} apart"] = share
    if of.alike:
        shares[f"cosine {ALIKE}"] = of.alike
    return {name: show_interval(share) if share else "-" for name, share in shares.items()}


def read_overlap(directory: Path) -> dict[str, dict[str, Overlap] | str]:
    """What `OVERLAP` in a directory says; empty without it.

    Raises:
        RlpreError: if it is damaged.
    """
    path = directory / OVERLAP
    if not path.exists():
        return {}
    try:
        return {
            name: tasks if isinstance(tasks, str) else {task: _restored(of) for task, of in tasks.items()}
            for name, tasks in read_json(path).items()
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise RlpreError(f"{path} is damaged ({error}): remove it, and compare again") from error


def _restored(content: Mapping[str, Any]) -> Overlap:
    single = {name: _interval(content[name]) for name in ("state", "layout", "observation", "alike")}
    return Overlap(**{**content, **single, "near": tuple(_interval(of) for of in content["near"])})


def _interval(content: dict[str, Any] | None) -> Interval | None:
    return None if content is None else Interval(**content)
