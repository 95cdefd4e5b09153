"""What is known of an encoder on one page: for a terminal, as a picture, and for a browser."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rlpre.encoders import AnyEncoder, Encoder
from rlpre.files import write_json
from rlpre.frames import FrameStore
from rlpre.measure.advice import MATTERS, SEEN, Advice
from rlpre.measure.diagnosis import CHANGES, FRESH, LABELS, OVERLAP, PRIORS, THIS, Diagnosis
from rlpre.report.diagnosis.plots import draw_diagnosis
from rlpre.report.page import write_page
from rlpre.report.probes import invariance_rows, label_panel, sparse_rows
from rlpre.report.svg import SMALL, svg
from rlpre.report.tables import Rows, aligned
from rlpre.report.words import sentence, short_names, show_interval, show_ratio

MADE = ("objective", "steps", "step", "batch", "lr", "seed", "start")  # of what a checkpoint tells, worth a line each
UNEVEN = 1000  # a condition number; `compare.py why` took features of 71k to 350, and a policy needed half the steps
UNASKED = Advice(
    None, "no advice from a checkpoint alone", ("give frames of a target, with labels, and there is some",)
)


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, sentences, and a table whose first row is its head; both may be empty."""

    title: str
    says: tuple[str, ...]
    rows: Rows


def write_diagnosis(
    encoder: AnyEncoder,
    path: Path,
    out: Path,
    found: Diagnosis | None = None,
    frames: FrameStore | None = None,
    pretrained_on: FrameStore | None = None,
) -> str:
    """Writes ``report.html`` and ``diagnosis.json``, and ``diagnosis.png`` if anything was measured.

    Args:
        encoder: that was diagnosed.
        path: its directory.
        out: receives the files.
        found: what was measured; None: only what its checkpoint says is shown.
        frames: on which it was measured.
        pretrained_on: the frames of its pretraining, if they were given.

    Returns:
        The same page for a terminal.
    """
    asked = found.advice if found else UNASKED
    title = path.parent.name if path.name.startswith("seed-") else path.name
    parts = [made(encoder, path, frames, pretrained_on), *(sections(found) if found else [])]
    write_json(out / "diagnosis.json", {"encoder": encoder.config, "diagnosis": found and plain(asdict(found))})
    if found:
        draw_diagnosis(found, title, sentence(str(asked)), out / "diagnosis.png")
    panels = _panels(found) if found else {}
    write_page(out, PAGE, {}, {"title": title, "advice": asked, "sections": parts, "panels": panels})
    return "\n\n".join([sentence(str(asked)), *(_text(part) for part in parts)])


def made(encoder: AnyEncoder, path: Path, frames: FrameStore | None, pretrained_on: FrameStore | None) -> Section:
    """What the checkpoint says, and on what it is measured here."""
    told = encoder.pretraining
    vision = encoder if isinstance(encoder, Encoder) else encoder.frames
    above = "" if encoder is vision else f"{encoder.config['backbone']} over "
    rows = [
        ["", "as the checkpoint says"],
        ["checkpoint", str(path)],
        ["architecture", f"{above}{vision.architecture}, {encoder.num_features} features"],
        ["frames it reads", " x ".join(map(str, vision.config["input"]["shape"]))],
        *([name, str(told[name])] for name in MADE if told.get(name) is not None),
        ["pretrained on", told.get("frames", "not told")[:12]],
        *_source("which are", pretrained_on),
        *_source("measured on", frames),
    ]
    says = [] if told else ["Its weights were never pretrained by rlpre."]
    if frames is None and told.get("probes"):
        before = told.get("control", {})
        scores = (f"{name} {score:.2f} ({before.get(name, np.nan):.2f})" for name, score in told["probes"].items())
        says.append(f"Linear probes at its end, in brackets before: {', '.join(scores)}.")
    if told.get("collapse"):
        says.append(f"Its pretraining warned: {told['collapse']}.")
    return Section("What it was trained on", tuple(says), rows)


def sections(found: Diagnosis) -> list[Section]:
    """What was measured, in reading order."""
    return [_knows(found), _dimensions(found), _health(found), _seen(found), _ignores(found), _prior(found), RULE]


def plain(value: Any) -> Any:
    """Arrays as lists and keys as text, ready for JSON."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _source(name: str, store: FrameStore | None) -> Rows:
    if store is None:
        return []
    worlds = ", ".join(short_names(store.tasks).values())
    return [[name, f"{store.path}, {store.distinct:,} distinct frames"], ["", f"of {worlds}"]]


def _unknown(found: Diagnosis, what: str) -> tuple[str, ...]:
    return (f"Not measured: {found.unknown[what]}.",) if what in found.unknown else ()


def _knows(found: Diagnosis) -> Section:
    title = "What it knows"
    if not found.findings.efficiency:
        return Section(title, _unknown(found, LABELS), [])
    rows = [["label", "chance", "fresh weights", "this encoder", "labels: fresh / this", "d'"]]
    for label, of in found.findings.efficiency.items():
        scores = [show_interval(of.curves[name].curve[-1]) for name in (FRESH, THIS)]
        ratio = of.curves[THIS].ratio
        strength = f"{2 * found.signals[label].strength:.1f}" if label in found.signals else "-"
        rows.append([label, f"{of.chance:.2f}", *scores, show_ratio(ratio) if ratio else "-", strength])
    says = (
        "Held-out scores of linear heads with most labels [95 % interval over draws of labels]: balanced accuracy, or "
        "R² of a quantity; how many times the labels fresh weights need to score alike; how far apart features hold "
        "classes, in units of the noise. The advice compares with five draws of fresh weights, one is shown.",
    )
    return Section(title, says, rows)


def _dimensions(found: Diagnosis) -> Section:
    now, untrained, health = found.conditioning, found.untrained, found.findings
    says = (
        f"Effective rank {health.health.effective_rank:.1f} of {health.health.dim} (fresh weights "
        f"{health.untrained.effective_rank:.1f}); condition number {now.number:.2g} over {now.dimensions} directions "
        f"(fresh weights {untrained.number:.2g} over {untrained.dimensions})."
        + " Frozen features of frames often serve a policy better whitened (`rlpre.whiten`)."
        * (now.number > UNEVEN),
        "The smallest number of features with which a probe scores 95 % of what all score above chance; turned at "
        "random or as principal components for comparison.",
    )
    if not found.sparse:
        return Section("In how few dimensions", says[:1], [])
    return Section("In how few dimensions", says, sparse_rows(found.sparse))


def _health(found: Diagnosis) -> Section:
    now, untrained = found.findings.health, found.findings.untrained
    rows = [["features", "this encoder", "fresh weights"]]
    for field in fields(now):
        values = (getattr(of, field.name) for of in (now, untrained))
        rows.append([field.name.replace("_", " "), *(f"{value:.3g}" for value in values)])
    cause = found.findings.cause
    return Section("Has it collapsed?", (f"Yes: {cause}." if cause else "No.",), rows)


def _seen(found: Diagnosis) -> Section:
    title, seen = "What it has seen of the target", found.findings.seen
    if seen is None:
        return Section(title, _unknown(found, OVERLAP), [])
    shares = {"the same frame": seen.observation} | {
        f"but for {cells} cell{'s' * (cells > 1)}": share for cells, share in enumerate(seen.near, start=1)
    }
    says = (f"Of {seen.met:,} distinct frames that the target shows, among {seen.seen:,} that it was pretrained on:",)
    return Section(title, says, [["share of steps", ""], *([name, show_interval(of)] for name, of in shares.items())])


def _ignores(found: Diagnosis) -> Section:
    title = "Which changes of a frame it ignores"
    if found.invariances is None:
        return Section(title, _unknown(found, CHANGES), [])
    says = (
        "How far features move, 1 is as far as another frame; scores on changed frames of probes that learned from "
        "plain ones, and from changed ones.",
    )
    return Section(title, says, invariance_rows(found.invariances))


def _prior(found: Diagnosis) -> Section:
    title, priors = "Does what it learned help as a prior?", found.findings.priors
    if not priors:
        return Section(title, _unknown(found, PRIORS), [])
    rows = [["label", "prior alone", "no prior", "with it", "gain", "trust"]]
    for label, of in priors.items():
        rows.append([label, *map(show_interval, (of.alone, of.without, of.with_prior, of.gain, of.trust))])
    few = next(iter(priors.values())).rows
    says = (f"Scores of heads after {few} labels of the target: a head for its pretraining's frames as their prior.",)
    return Section(title, (*says, *_unknown(found, PRIORS)), rows)


# what it says of its worth was measured: see rlpre.measure.advice
RULE = Section(
    "How the advice comes about",
    (
        "The first that applies: collapsed features, scratch; no gain over fresh weights with few labels, scratch; no "
        f"loss with most labels and at least {SEEN:.0%} of the target's steps seen, freeze; heads of its "
        "pretraining's frames help as priors, anchor; otherwise fine-tune. Differences count from "
        f"{MATTERS:g} on, if their interval excludes 0.",
        "Take it as a summary of the evidence: held against learning curves (scripts/advice.py), the rule has not been "
        "better than always starting from scratch.",
    ),
    [],
)


def _text(part: Section) -> str:
    return "\n".join([part.title.upper(), *part.says, *([aligned(part.rows)] if part.rows else [])])


def _panels(found: Diagnosis) -> dict[str, Markup]:
    """Label-efficiency curves by label."""
    return {
        label: svg(SMALL, f"score of {label} by number of labels", partial(label_panel, of=of))
        for label, of in found.findings.efficiency.items()
    }


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: diagnosis</title>
<style>{{ style }} h1 { max-width: 28ch; }</style>
<header>
  <p class="eyebrow">Diagnosis of {{ title }}</p>
  <h1>{{ sentence(advice.claim) }}.</h1>
  {% for reason in advice.reasons %}
  <p class="lede">{{ sentence(reason) }}.</p>
  {% endfor %}
</header>
{% for part in sections %}
<section>
  <h2>{{ part.title }}</h2>
  {% for text in part.says %}<p class="soft">{{ text }}</p>
  {% endfor %}
  {% if part.rows %}
  <div class="wide"><table>
    <tr>{% for cell in part.rows[0] %}<th>{{ cell }}{% endfor %}
    {% for row in part.rows[1:] %}
    <tr>{% for cell in row %}<td{% if cell | length > 40 %} class="words"{% endif %}>{{ cell }}{% endfor %}
    {% endfor %}
  </table></div>
  {% endif %}
  {% if loop.index == 2 and panels %}
  <h3>Label efficiency</h3>
  <p class="soft">Held-out score by number of labels: this encoder in colour, fresh weights black, chance grey, the
    threshold dotted; bands: 95 % intervals over draws of labels.</p>
  <div class="panels">
    {% for label, svg in panels.items() %}
    <figure><figcaption><b>{{ label }}</b></figcaption>{{ svg }}</figure>
    {% endfor %}
  </div>
  {% endif %}
</section>
{% endfor %}
</html>
"""
