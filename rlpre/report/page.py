"""What all ``report.html`` share: one page without scripts that loads nothing, light or dark as its reader is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from rlpre.files import write_bytes
from rlpre.report.words import sentence

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfc; --card: #f5f5f2; --ink: #1b1d20; --soft: #62676e; --line: #e3e3de;
  --saved: #00704f; --cost: #b3420b; --open: #62676e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --card: #1d2024; --ink: #e9e8e4; --soft: #9aa0a8; --line: #2e3238;
    --saved: #4cc79f; --cost: #ff9b68; --open: #9aa0a8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1140px; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem);
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums;
}
h1 {
  margin: .4rem 0 1rem; max-width: 24ch; font-size: clamp(1.9rem, 5vw, 3.1rem); line-height: 1.12; font-weight: 680;
  letter-spacing: -.022em; text-wrap: balance;
}
h2 { margin: 0 0 .25rem; font-size: 1.5rem; line-height: 1.2; font-weight: 650; letter-spacing: -.012em; }
h3 { margin: 2.5rem 0 .75rem; font-size: 1rem; font-weight: 620; }
p { margin: 0 0 .75rem; max-width: 72ch; }
a { color: inherit; }
section { margin-top: 4.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.soft, small, figcaption, th, dt, summary { color: var(--soft); }
.eyebrow { margin: 0; color: var(--soft); }
.lede { font-size: 1.12rem; }
.saved { color: var(--saved); } .cost { color: var(--cost); } .open { color: var(--open); }
.notice { margin: 1.5rem 0 0; padding: .9rem 1.1rem; border-left: 3px solid var(--cost); background: var(--card); }
.notice p:last-child, .notice ul { margin: 0; }
.notice ul { padding-left: 1.1rem; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .88rem; line-height: 1.35; }
th, td { padding: .55rem .7rem .55rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid var(--line); font-size: .82rem; font-weight: 500; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); white-space: nowrap; }
td.words { min-width: 22rem; white-space: normal; }
td small { display: block; font-size: .8rem; }
tr.asked td:first-child { font-weight: 650; }
.swatch { width: 24px; height: 4px; margin-right: .6rem; vertical-align: middle; }
.forest { padding-left: 0; text-align: center; }
td.forest { background: linear-gradient(var(--soft), var(--soft)) calc(50% - .35rem) / 1px 100% no-repeat; }
.strip { display: block; width: 142px; height: 1.25rem; margin: 0 auto; fill: currentColor; stroke: currentColor; }
.strip path { fill: none; stroke-width: 2; }
.chart { display: block; width: 100%; height: auto; fill: currentColor; }
.overview { display: grid; grid-template-columns: minmax(0, 1fr) max-content; gap: 1rem 2rem; align-items: center; }
.legend { margin: 0; padding: 0; list-style: none; font-size: .9rem; line-height: 2; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.5rem 2rem; }
.profiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 3rem; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1.25rem; align-items: end; }
figure { margin: 0; }
figcaption { margin-bottom: .3rem; font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; }
.films img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--card); }
.frames { display: flex; flex-wrap: wrap; gap: 6px; }
.frames img { width: 72px; height: 72px; object-fit: contain; image-rendering: pixelated; background: var(--card); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.5rem; margin: 1rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 1rem; }
summary { cursor: pointer; }
details dl { font-size: .85rem; }
@media (max-width: 760px) {
  .overview { grid-template-columns: 1fr; }
  .legend { columns: 2 15rem; line-height: 1.8; font-size: .8rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
}
@media print { section { break-inside: avoid; } }
"""

NUMBERS = """\
{%- macro numbers(text) -%}
  {%- set value, _, band = text.partition(" ") -%}
  {{ value }}{% if band %}<small>{{ band }}</small>{% endif %}
{%- endmacro -%}

"""

PROVENANCE = """\
<section id="provenance">
  <h2>How it was made</h2>
  <dl>
    <dt>Versions<dd>{{ provenance.versions | join(", ") or "not recorded" }}
    <dt>Commit<dd>{{ provenance.commits | join(", ") or "not recorded" }}
  </dl>
  <details><summary>Configuration</summary>
    <dl>{% for key, value in provenance.configuration.items() %}<dt>{{ key }}<dd>{{ value }}{% endfor %}</dl>
  </details>
</section>
</html>
"""


def write_page(directory: Path, template: str, tools: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Writes a template filled with ``content`` as ``report.html``; besides `sentence` it can call ``tools``."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    every = {"style": Markup(STYLE), "sentence": sentence, **tools}
    write_bytes(directory / "report.html", environment.from_string(template, globals=every).render(content).encode())
