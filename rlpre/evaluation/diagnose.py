"""Everything that can be measured of an encoder on frames of a target, compared with fresh weights, on one page.

The page gives evidence, no advice. An earlier version derived advice from it: freeze, anchor or fine-tune the encoder,
or start from scratch. On 40 pairs of encoder and task of the comparisons in ``results/``, judged by the learning curves
of agents, the advised way was the best in 48 % and not certainly worse than the best in 88 %. Always starting from
scratch reached 52 % and 85 %, a random choice 47 % and 82 %: what linear heads can read from features did not predict
how agents learn from them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlpre.data.store import FrameStore
from rlpre.encoders import AnyEncoder, Encoder
from rlpre.errors import RlpreError
from rlpre.evaluation import health, page
from rlpre.evaluation.health import Cause, Conditioning, Health
from rlpre.evaluation.invariance import Invariances, invariances
from rlpre.evaluation.overlap import Overlap, overlap
from rlpre.evaluation.page import Cell, Page, Section, Table, Toned, show_interval, show_ratio, signed
from rlpre.evaluation.prior import PriorGain, prior_gain
from rlpre.evaluation.probes import (
    Factor,
    Floats,
    LabelEfficiency,
    Sparsity,
    distinct_rows,
    fresh,
    label_efficiency,
    labelled_features,
    read,
    separation,
    sparsity,
)
from rlpre.objectives import make_reader
from rlpre.utils import write_bytes, write_json

T = TypeVar("T")

THIS, FRESH = "this encoder", "fresh weights"
LABELS, OVERLAP, PRIORS, CHANGES = "labels", "overlap", "priors", "changes"  # parts that frames may not allow
RECORDED = ("objective", "steps", "step", "batch", "lr", "seed", "start")  # shown from a checkpoint
UNEVEN = 1000  # whitening is mentioned above this condition number; it took 71k to 350 and halved a policy's steps
LOST = 0.1  # of a score: a larger loss is marked

KNOWN = (
    "Held-out scores of linear heads with most labels [95 % interval over draws of labels]: balanced accuracy, or R2 "
    "of a quantity. Then labels that fresh weights need / labels that this encoder needs to reach the threshold dotted "
    "below, and d', the distance of classes in units of the noise."
)
CURVES = "Held-out scores by number of labels, with 95 % intervals over draws of labels; grey is chance."
FEW_FEATURES = (
    "The smallest number of features with which a probe reaches 95 % of what all features score above chance: of the "
    "features themselves, rotated at random, and as principal components."
)
IGNORED = (
    "How far features move, where 1 is as far as to another frame. Then scores on changed frames of probes that "
    f"learned from plain frames, and (retrained) from changed ones; marked if even the latter lose {LOST:g}."
)


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of an encoder; made by `diagnose`. Health and conditioning are by `THIS` and `FRESH`."""

    health: dict[str, Health]
    conditioning: dict[str, Conditioning]
    cause: Cause | None  # of a collapse; None: healthy
    efficiency: dict[str, LabelEfficiency]  # by label, scores by number of labels, of `THIS` and `FRESH`
    sparse: dict[str, Sparsity]  # by label, the number of features that predict it
    separations: dict[str, dict[int, float]]  # by label with classes, the distance d' of each class from all others
    invariances: Invariances | None  # changes of a frame that features ignore; None for sequences, or without labels
    seen: Overlap | None  # what the frames of the pretraining contain of the target; None if they are unknown
    priors: dict[str, PriorGain]  # by label, the value of a head for the frames of the pretraining as a prior
    unknown: dict[str, str]  # by part (`LABELS`, ..) the reason why it was not measured


def diagnose(encoder: AnyEncoder, frames: FrameStore, pretrained_on: FrameStore | None = None) -> Diagnosis:
    """Measures an encoder on frames of a target.

    Args:
        encoder: its mode is restored.
        frames: of the target, with label columns.
        pretrained_on: the frames of its pretraining; None: unknown.

    Raises:
        RlpreError: if the encoder was pretrained on other frames than ``pretrained_on``, the frames do not fit it,
            fewer than two of them are different, or features are not finite.
    """
    recorded = encoder.pretraining.get("frames")
    if pretrained_on is not None and recorded not in (None, pretrained_on.hash):
        raise RlpreError(
            f"the encoder was pretrained on frames {recorded[:12]}, {pretrained_on.path} holds "
            f"{pretrained_on.hash[:12]}: give those, or leave them out"
        )
    reader, unknown = make_reader(frames, encoder), dict[str, str]()
    encoders = {FRESH: fresh(encoder), THIS: encoder}
    measured = {name: health.encoder_health(each, reader) for name, each in encoders.items()}
    rows = distinct_rows(reader, health.ROWS, 0)
    labelled = _try(unknown, LABELS, lambda: labelled_features(encoder, reader)) or {}
    control = labelled_features(encoders[FRESH], reader) if labelled else {}
    if pretrained_on is None:
        unknown[OVERLAP] = unknown[PRIORS] = "the frames of its pretraining were not given"
    elif frames.hash == pretrained_on.hash:
        unknown[PRIORS] = "the target's frames are those of its pretraining"
    return Diagnosis(
        health=measured,
        conditioning={name: health.conditioning(read(each, reader, rows)) for name, each in encoders.items()},
        cause=health.collapse_cause(measured[THIS], measured[FRESH]),
        efficiency={
            label: label_efficiency({FRESH: control[label][0], THIS: features}, factor)
            for label, (features, factor) in labelled.items()
        },
        sparse={label: sparsity(*each) for label, each in labelled.items()},
        separations={label: separation(*each) for label, each in labelled.items() if not each[1].quantity},
        invariances=_try(unknown, CHANGES, lambda: invariances(encoder, reader)),
        seen=overlap(pretrained_on, frames, "only frames are compared") if pretrained_on else None,
        priors=_prior_gains(encoder, pretrained_on, labelled, unknown)
        if PRIORS not in unknown and pretrained_on
        else {},
        unknown=unknown,
    )


def _try(unknown: dict[str, str], part: str, measure: Callable[[], T]) -> T | None:
    """The measurement; None if the frames do not allow it, with the reason in ``unknown``."""
    try:
        return measure()
    except RlpreError as error:
        unknown[part] = str(error)
        return None


def _prior_gains(
    encoder: AnyEncoder, source: FrameStore, labelled: Mapping[str, tuple[Floats, Factor]], unknown: dict[str, str]
) -> dict[str, PriorGain]:
    known = _try(unknown, PRIORS, lambda: labelled_features(encoder, make_reader(source, encoder))) or {}
    found = {
        label: _try(unknown, PRIORS, partial(prior_gain, known[label], target))
        for label, target in labelled.items()
        if label in known
    }
    return {label: gain for label, gain in found.items() if gain}


def write_diagnosis(
    encoder: AnyEncoder,
    path: Path,
    out: Path,
    found: Diagnosis | None = None,
    frames: FrameStore | None = None,
    pretrained_on: FrameStore | None = None,
) -> str:
    """Writes ``report.html`` and ``diagnosis.json``, and ``diagnosis.png`` if labels were probed.

    Args:
        encoder: the encoder.
        path: its directory.
        out: receives the files.
        found: what was measured; None: the page shows only what the checkpoint says.
        frames: the target.
        pretrained_on: the frames of its pretraining, if they were given.

    Returns:
        The same page for a terminal.
    """
    name = path.parent.name if path.name.startswith("seed-") else path.name
    sections = [_checkpoint(encoder, path, frames, pretrained_on)]
    answer, facts, tone = "Nothing was measured: give frames of a target.", [], ""
    if found:
        answer, facts, tone = _answer(found), _facts(found), "bad" if found.cause else ""
        sections += [part(found) for part in (_known, _few_features, _health, _seen, _ignored, _prior)]
    if found and found.efficiency:
        figure = draw_label_curves(found.efficiency)
        sections.insert(2, Section("From how few labels", blocks=[page.Figure("Label curves", figure, CURVES)]))
        write_bytes(out / "diagnosis.png", page.as_png(figure))
    content = {"encoder": encoder.config, "diagnosis": found and asdict(found)}
    written = json.dumps(content, default=np.ndarray.tolist)
    write_json(out / "diagnosis.json", json.loads(written, parse_constant=lambda _: None))  # JSON has no infinity
    report = Page(f"What does encoder {name} know?", answer, tone, facts, sections=sections)
    page.write_html(report, out / "report.html")
    return page.as_text(report)


def _answer(found: Diagnosis) -> str:
    if found.cause:
        return f"Its features have collapsed: {found.cause}."
    if not found.efficiency:
        return "Its features have not collapsed; without labels nothing else is known."
    ratios = [scores.ratio(THIS).ratio for scores in found.efficiency.values()]
    fewer = sum(ratio.low is not None and ratio.low > 1 for ratio in ratios)
    more = sum(ratio.high is not None and ratio.high < 1 for ratio in ratios)
    return (
        f"Its features have not collapsed; of {len(ratios)} labels a linear head learns {fewer} from fewer examples "
        f"than on fresh weights, {more} from more."
    )


def _facts(found: Diagnosis) -> list[str]:
    facts = []
    if found.efficiency:
        ratios = ", ".join(f"{label} {show_ratio(each.ratio(THIS))}" for label, each in found.efficiency.items())
        facts.append(f"Examples that linear heads need on fresh weights / on its features: {ratios}.")
    if found.seen:
        share = page.percent(found.seen.observation.value)
        facts.append(f"{share} of the target's steps show a frame that it was pretrained on.")
    if found.priors:
        gains = ", ".join(f"{label} {signed(each.gain)}" for label, each in found.priors.items())
        facts.append(f"Heads for the frames of its pretraining, as priors, change scores after few labels by: {gains}.")
    return facts


def _checkpoint(
    encoder: AnyEncoder, path: Path, frames: FrameStore | None, pretrained_on: FrameStore | None
) -> Section:
    recorded = encoder.pretraining
    vision = encoder if isinstance(encoder, Encoder) else encoder.frames
    above = "" if encoder is vision else f"{encoder.config['backbone']} over "
    rows = [
        ["checkpoint", str(path)],
        ["architecture", f"{above}{vision.architecture}, {encoder.num_features} features"],
        ["frames it reads", " x ".join(map(str, vision.config["input"]["shape"]))],
        *([name, str(recorded[name])] for name in RECORDED if recorded.get(name) is not None),
        ["pretrained on", recorded.get("frames", "not recorded")[:12]],
    ]
    for name, store in (("which are", pretrained_on), ("measured on", frames)):
        if store is not None:
            tasks = ", ".join(page.short_names(store.tasks).values())
            rows.append([name, f"{store.path}, {store.distinct:,} distinct frames of {tasks}"])
    text = [] if recorded else ["Its weights were not pretrained by rlpre."]
    if frames is None and recorded.get("probes"):
        before = recorded.get("control", {})
        scores = (f"{name} {score:.2f} ({before.get(name, np.nan):.2f})" for name, score in recorded["probes"].items())
        text.append(f"Linear probes after pretraining (before): {', '.join(scores)}.")
    if recorded.get("collapse"):
        text.append(f"Its pretraining warned: {recorded['collapse']}.")
    return Section("What it was trained on", text, [Table(["", "as the checkpoint says"], rows)])


def _section(
    found: Diagnosis, part: str, title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]
) -> Section:
    """A table of one part, and why the part, or some of it, was not measured."""
    why = [f"Not measured: {found.unknown[part]}."] if part in found.unknown else []
    return Section(title, [text, *why], [Table(head, rows)]) if rows else Section(title, why)


def _known(found: Diagnosis) -> Section:
    rows = []
    for label, scores in found.efficiency.items():
        distances = list(found.separations.get(label, {}).values())
        most = [show_interval(scores.curve(name)[-1]) for name in (FRESH, THIS)]
        apart = f"{np.mean(distances):.1f}" if distances else "-"
        rows.append([label, f"{scores.chance:.2f}", *most, show_ratio(scores.ratio(THIS)), apart])
    head = ["label", "chance", FRESH, THIS, "labels: fresh / this", "d'"]
    return _section(found, LABELS, "What it knows", KNOWN, head, rows)


def _few_features(found: Diagnosis) -> Section:
    rows = []
    for label, each in found.sparse.items():
        enough = (f"{size or '-'} of {each.dim}" for size in each.smallest.values())
        rows.append([label, f"{each.chance:.2f}", f"{each.dense:.2f}", *enough])
    head = ["label", "chance", "all features", "enough: features", "enough: rotated", "enough: pca"]
    return _section(found, LABELS, "In how few features", FEW_FEATURES, head, rows)


def _health(found: Diagnosis) -> Section:
    columns = [asdict(found.health[name]) | asdict(found.conditioning[name]) for name in (THIS, FRESH)]
    names = {"number": "condition number", "dimensions": "directions that vary"}
    rows = [
        [names.get(name, name.replace("_", " ")), *(f"{each[name]:.3g}" for each in columns)] for name in columns[0]
    ]
    text = [f"Yes: {found.cause}." if found.cause else "No."]
    if (number := found.conditioning[THIS].number) > UNEVEN:
        text.append(f"Condition number {number:.2g}: frozen, they often serve a policy better whitened (rlpre.whiten).")
    return Section("Has it collapsed?", text, [Table(["features", THIS, FRESH], rows)])


def _seen(found: Diagnosis) -> Section:
    seen = found.seen
    rows = [[name, show_interval(share)] for name, share in seen.shares.items() if share] if seen else []
    text = f"The target shows {seen.met:,} distinct frames; the pretraining's are {seen.seen:,}." if seen else ""
    head = ["in the pretraining's frames", "share of the target's steps"]
    return _section(found, OVERLAP, "What it has seen of the target", text, head, rows)


def _ignored(found: Diagnosis) -> Section:
    rows: list[list[Cell]] = []
    head = ["frames", "moved", "moved (fresh)", "ignored"]
    if effects := found.invariances:
        head += effects.plain
        for name, scores in ((FRESH, effects.fresh), (THIS, effects.plain)):
            rows.append([f"plain ({name})", "-", "-", "-", *(f"{score:.2f}" for score in scores.values())])
        for name, effect in effects.changes.items():
            rows.append([name, f"{effect.moved:.2f}", f"{effect.fresh:.2f}", "learned" if effect.learnt else "no"])
            for label, score in effects.plain.items():
                tone = "bad" if effect.relearnt[label] < score - LOST else ""
                rows[-1].append(Toned(f"{effect.asked[label]:.2f}, retrained {effect.relearnt[label]:.2f}", tone))
    return _section(found, CHANGES, "Which changes of a frame it ignores", IGNORED, head, rows)


def _prior(found: Diagnosis) -> Section:
    rows = [
        [label, *map(show_interval, (each.alone, each.without, each.with_prior, each.gain, each.trust))]
        for label, each in found.priors.items()
    ]
    few = max((each.rows for each in found.priors.values()), default=0)
    text = f"Scores of linear heads after {few} labels of the target; the prior is a head for the pretraining's frames."
    head = ["label", "prior alone", "no prior", "with it", "gain", "trust"]
    return _section(found, PRIORS, "Does what it learned help as a prior?", text, head, rows)


def draw_label_curves(efficiency: Mapping[str, LabelEfficiency]) -> Figure:
    """Held-out scores by number of labels, one panel per label."""
    columns = min(4, len(efficiency))
    lines = -(-len(efficiency) // columns)
    figure = Figure(figsize=(3.5 * columns, 3 * lines), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (label, scores) in zip(panels, efficiency.items(), strict=False):
        for name, colour in ((FRESH, page.CONTROLS[0]), (THIS, page.COLOURS[0])):
            page.draw_curve(panel, scores.counts.tolist(), scores.curve(name), colour, label=name)
        if np.isfinite(scores.threshold):
            panel.axhline(scores.threshold, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
        panel.axhline(scores.chance, color=page.CONTROLS[2], linewidth=0.8)
        panel.set(xscale="log", xlabel="labels", ylim=(-0.25 if scores.chance == 0 else scores.chance - 0.1, 1.02))
        panel.set_title(label, fontweight="bold")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        page.plain_axes(panel)
    for empty in panels[len(efficiency) :]:
        empty.remove()
    panels[0].set_ylabel("held-out score")
    panels[0].legend(frameon=False)
    return figure
