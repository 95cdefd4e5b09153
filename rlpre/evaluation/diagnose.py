"""Everything that can be measured of an encoder on frames of a target, compared with fresh weights, on one page.

The page gives evidence, no advice. An earlier version derived advice from it: freeze, anchor or fine-tune the encoder,
or start from scratch. On 40 pairs of encoder and task of the comparisons in ``results/``, judged by the learning curves
of agents, the advised way was the best in 48 % and not certainly worse than the best in 88 %. Always starting from
scratch reached 52 % and 85 %, a random choice 47 % and 82 %: what linear heads can read from features did not predict
how agents learn from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rlpre.encoders import AnyEncoder, Encoder
from rlpre.errors import RlpreError
from rlpre.evaluation import health, page
from rlpre.evaluation.health import Cause, Conditioning, Health
from rlpre.evaluation.invariance import Invariances, invariances
from rlpre.evaluation.overlap import Overlap, overlap
from rlpre.evaluation.page import COLOURS, CONTROLS, Page, Section, Table, Toned, show_interval, show_ratio, signed
from rlpre.evaluation.prior import PriorGain, prior_gain
from rlpre.evaluation.probes import (
    SEEDS,
    Factor,
    Floats,
    LabelEfficiency,
    Signal,
    Sparsity,
    distinct_rows,
    fresh,
    label_efficiency,
    labelled_features,
    signal,
    sparsity,
)
from rlpre.evaluation.stats import Interval, area_under_curve, mean_interval
from rlpre.frames import FrameStore
from rlpre.objectives import make_reader
from rlpre.utils import write_bytes, write_json

T = TypeVar("T")
Labelled = Mapping[str, tuple[Floats, Factor]]  # see `labelled_features`

THIS, FRESH = "this", "fresh"  # the encoder, and the control with fresh weights
FRESH_SEEDS = (FRESH, *(f"{FRESH} {seed}" for seed in range(1, SEEDS)))  # controls by seed of the weights
FEW = 100  # most labels that count as few
LABELS, OVERLAP, PRIORS, CHANGES = "labels", "overlap", "priors", "changes"  # parts that frames may not allow
UNEVEN = 1000  # whitening is mentioned above this condition number; it took 71k to 350 and halved a policy's steps
CURVES = (
    "Held-out score by number of labels: this encoder in colour, fresh weights black, chance grey, the threshold "
    "dotted. Bands are 95 % intervals over draws of labels."
)
RECORDED = ("objective", "steps", "step", "batch", "lr", "seed", "start")  # shown from a checkpoint
LOST = 0.1  # of a score: a larger loss is shown as bad


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of an encoder; made by `diagnose`.

    Attributes:
        health: of its features.
        fresh_health: the same of fresh weights.
        cause: of a collapse; None: healthy.
        conditioning: of its features.
        fresh_conditioning: the same of fresh weights.
        efficiency: by label, label curves of the encoder (`THIS`) and of fresh weights (`FRESH_SEEDS`).
        few: mean score of linear heads with at most `FEW` labels minus that on fresh weights: the mean height of the
            label curve over the logarithm of the number of labels, averaged over labels. Each seed draws other labels
            and other fresh weights, so the interval includes both. None without labels.
        most: the same with most labels.
        sparse: by label, how many features predict it.
        signals: by label with classes, the distance of classes in feature space.
        invariances: changes of a frame that features ignore; None for sequences, or without labels.
        seen: what the frames of the pretraining contain of the target; None if they are unknown.
        priors: by label, the value of a head for the frames of the pretraining as a prior.
        unknown: by part (`LABELS`, ..) the reason why it was not measured.
    """

    health: Health
    fresh_health: Health
    cause: Cause | None
    conditioning: Conditioning
    fresh_conditioning: Conditioning
    efficiency: dict[str, LabelEfficiency]
    few: Interval | None
    most: Interval | None
    sparse: dict[str, Sparsity]
    signals: dict[str, Signal]
    invariances: Invariances | None
    seen: Overlap | None
    priors: dict[str, PriorGain]
    unknown: dict[str, str]


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
    controls = {name: fresh(encoder, seed) for seed, name in enumerate(FRESH_SEEDS)}
    now, conditioning = _statistics(encoder, reader)
    before, fresh_conditioning = _statistics(controls[FRESH], reader)
    labelled = _try(unknown, LABELS, lambda: labelled_features(encoder, reader)) or {}
    curves = _label_curves(
        labelled, {name: labelled_features(each, reader) for name, each in controls.items() if labelled}
    )
    if pretrained_on is None:
        unknown[OVERLAP] = unknown[PRIORS] = "the frames of its pretraining were not given"
    return Diagnosis(
        health=now,
        fresh_health=before,
        cause=health.collapse_cause(now, before),
        conditioning=conditioning,
        fresh_conditioning=fresh_conditioning,
        efficiency=curves,
        few=_gain(curves, few=True) if curves else None,
        most=_gain(curves, few=False) if curves else None,
        sparse={label: sparsity(*each) for label, each in labelled.items()},
        signals={label: signal(*each) for label, each in labelled.items() if not each[1].quantity},
        invariances=_try(unknown, CHANGES, lambda: invariances(encoder, reader)),
        seen=overlap(pretrained_on, frames, "only frames are compared") if pretrained_on else None,
        priors=_prior_gains(encoder, pretrained_on, frames, labelled, unknown) if pretrained_on else {},
        unknown=unknown,
    )


def _try(unknown: dict[str, str], part: str, measure: Callable[[], T]) -> T | None:
    """The measurement; None if the frames do not allow it, with the reason in ``unknown``."""
    try:
        return measure()
    except RlpreError as error:
        unknown[part] = str(error)
        return None


def _statistics(encoder: AnyEncoder, reader: Any) -> tuple[Health, Conditioning]:
    features = health.sample_features(encoder, reader, distinct_rows(reader, health.ROWS, 0), 0)
    return health.health(*health.unstandardised(encoder, features)), health.conditioning(features[0].cpu())


def _label_curves(labelled: Labelled, controls: Mapping[str, Labelled]) -> dict[str, LabelEfficiency]:
    curves = {}
    for label, (features, factor) in labelled.items():
        sources = {FRESH: controls[FRESH][label][0], THIS: features}
        sources |= {name: control[label][0] for name, control in controls.items()}
        curves[label] = label_efficiency(sources, factor)
    return curves


def _gain(curves: Mapping[str, LabelEfficiency], few: bool) -> Interval:
    """See `Diagnosis.few`. Scores below chance count as chance, because R2 has no lower end."""
    gains = []
    for found in curves.values():
        own = np.maximum(found.scores[THIS], found.chance)
        other = [found.scores[name][seed] for seed, name in enumerate(FRESH_SEEDS)]
        gain, kept = own - np.maximum(other, found.chance), found.counts <= FEW
        gains.append(area_under_curve(np.log(found.counts[kept]), gain[:, kept]) if few else gain[:, -1])
    return mean_interval(np.mean(gains, axis=0))


def _prior_gains(
    encoder: AnyEncoder, source: FrameStore, target: FrameStore, labelled: Labelled, unknown: dict[str, str]
) -> dict[str, PriorGain]:
    if source.hash == target.hash:
        unknown[PRIORS] = "the target's frames are those of its pretraining"
        return {}
    known = _try(unknown, PRIORS, lambda: labelled_features(encoder, make_reader(source, encoder))) or {}
    gains = {}
    for label in (label for label in labelled if label in known):
        if gain := _try(unknown, PRIORS, partial(prior_gain, known[label], labelled[label])):
            gains[label] = gain
    return gains


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
    sections, answer = (
        [_checkpoint(encoder, path, frames, pretrained_on)],
        "Nothing was measured: give frames of a target.",
    )
    if found:
        answer = f"Its features have collapsed: {found.cause}." if found.cause else "Its features have not collapsed."
        sections += [part(found) for part in (_known, _dimensions, _collapse, _seen, _ignored, _prior)]
    if found and found.efficiency:
        figure = draw_label_curves(found.efficiency)
        sections.insert(2, Section("From how few labels", [CURVES], [page.Figure("Label curves", figure)]))
        write_bytes(out / "diagnosis.png", page.as_png(figure))
    write_json(out / "diagnosis.json", {"encoder": encoder.config, "diagnosis": found and _plain(asdict(found))})
    tone = "bad" if found and found.cause else ""
    report = Page(f"What does encoder {name} know?", answer, tone, _facts(found) if found else (), sections=sections)
    page.write_html(report, out / "report.html")
    return page.as_text(report)


def _plain(value: Any) -> Any:
    """Arrays as lists and keys as text, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _facts(found: Diagnosis) -> list[str]:
    facts = []
    if found.few and found.most:
        facts.append(
            f"Linear heads score {signed(found.few)} relative to heads on fresh weights with at most {FEW} labels, and "
            f"{signed(found.most)} with most labels."
        )
    if found.seen:
        seen = page.percent(found.seen.observation.value)
        facts.append(f"{seen} of the target's steps show a frame that it was pretrained on.")
    if found.priors:
        gains = ", ".join(f"{label} {signed(each.gain)}" for label, each in found.priors.items())
        facts.append(f"As priors, heads for the frames of its pretraining change the scores of few labels by: {gains}.")
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


def _missing(found: Diagnosis, part: str) -> list[str]:
    return [f"Not measured: {found.unknown[part]}."] if part in found.unknown else []


def _known(found: Diagnosis) -> Section:
    title = "What it knows"
    if not found.efficiency:
        return Section(title, _missing(found, LABELS))
    rows = []
    for label, curves in found.efficiency.items():
        scores = [show_interval(curves.curve(name)[-1]) for name in (FRESH, THIS)]
        strength = f"{2 * found.signals[label].strength:.1f}" if label in found.signals else "-"
        rows.append([label, f"{curves.chance:.2f}", *scores, show_ratio(curves.ratio(THIS)), strength])
    text = (
        "Held-out scores of linear heads with most labels [95 % interval over draws of labels]: balanced accuracy, or "
        "R2 of a quantity. Then labels that fresh weights need / labels that this encoder needs for the threshold, and "
        "d', the distance of classes in units of the noise."
    )
    head = ["label", "chance", "fresh weights", "this encoder", "labels: fresh / this", "d'"]
    return Section(title, [text], [Table(head, rows)])


def _dimensions(found: Diagnosis) -> Section:
    now, before = found.conditioning, found.fresh_conditioning
    text = [
        f"Effective rank {found.health.effective_rank:.1f} of {found.health.dim} (fresh weights "
        f"{found.fresh_health.effective_rank:.1f}); condition number {now.number:.2g} over {now.dimensions} directions "
        f"(fresh weights {before.number:.2g} over {before.dimensions})."
    ]
    if now.number > UNEVEN:
        text.append("Frozen features with such a condition number often serve a policy better whitened: rlpre.whiten.")
    if not found.sparse:
        return Section("In how few dimensions", text)
    text.append(
        "The table gives the smallest number of features with which a probe reaches 95 % of what all features score "
        "above chance: of the features themselves, rotated at random, and as principal components."
    )
    rows = [
        [
            label,
            f"{each.chance:.2f}",
            f"{each.dense:.2f}",
            *(f"{k or '-'} of {each.dim}" for k in each.smallest.values()),
        ]
        for label, each in found.sparse.items()
    ]
    head = ["label", "chance", "all features", "enough: features", "enough: rotated", "enough: pca"]
    return Section("In how few dimensions", text, [Table(head, rows)])


def _collapse(found: Diagnosis) -> Section:
    now, before = asdict(found.health), asdict(found.fresh_health)
    rows = [[name.replace("_", " "), f"{now[name]:.3g}", f"{before[name]:.3g}"] for name in now]
    answer = f"Yes: {found.cause}." if found.cause else "No."
    return Section("Has it collapsed?", [answer], [Table(["features", "this encoder", "fresh weights"], rows)])


def _seen(found: Diagnosis) -> Section:
    title, seen = "What it has seen of the target", found.seen
    if seen is None:
        return Section(title, _missing(found, OVERLAP))
    text = f"The target shows {seen.met:,} distinct frames; the frames of the pretraining are {seen.seen:,}."
    rows = [[name, show_interval(share)] for name, share in seen.shares.items() if share]
    return Section(title, [text], [Table(["in the pretraining's frames", "share of the target's steps"], rows)])


def _ignored(found: Diagnosis) -> Section:
    title, effects = "Which changes of a frame it ignores", found.invariances
    if effects is None:
        return Section(title, _missing(found, CHANGES))
    labels = list(effects.plain)
    rows: list[list[str | Toned]] = [
        [name, "-", "-", "-", *(f"{scores[label]:.2f}" for label in labels)]
        for name, scores in (("plain (fresh weights)", effects.fresh), ("plain", effects.plain))
    ]
    for name, effect in effects.changes.items():
        scores = [
            Toned(
                f"{effect.asked[label]:.2f}, anew {effect.relearnt[label]:.2f}",
                "bad" if effect.relearnt[label] < effects.plain[label] - LOST else "",
            )
            for label in labels
        ]
        rows.append([name, f"{effect.moved:.2f}", f"{effect.fresh:.2f}", "learned" if effect.learnt else "no", *scores])
    text = (
        "How far features move, where 1 is as far as to another frame. Then scores on changed frames of probes that "
        f"learned from plain frames, and (anew) from changed frames; marked if even the latter lose {LOST:g}."
    )
    return Section(title, [text], [Table(["frames", "moved", "moved (fresh)", "ignored", *labels], rows)])


def _prior(found: Diagnosis) -> Section:
    title = "Does what it learned help as a prior?"
    if not found.priors:
        return Section(title, _missing(found, PRIORS))
    rows = [
        [label, *map(show_interval, (each.alone, each.without, each.with_prior, each.gain, each.trust))]
        for label, each in found.priors.items()
    ]
    few = next(iter(found.priors.values())).rows
    text = f"Scores of linear heads after {few} labels of the target; the prior is a head for the pretraining's frames."
    head = ["label", "prior alone", "no prior", "with it", "gain", "trust"]
    return Section(title, [text, *_missing(found, PRIORS)], [Table(head, rows)])


def draw_label_curves(efficiency: Mapping[str, LabelEfficiency]) -> Figure:
    """Held-out scores of the encoder and of fresh weights by number of labels, one panel per label."""
    columns = min(4, len(efficiency))
    lines = -(-len(efficiency) // columns)
    figure = Figure(figsize=(3.5 * columns, 3 * lines), dpi=110, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (label, scores) in zip(panels, efficiency.items(), strict=False):
        for name, colour in ((FRESH, CONTROLS[0]), (THIS, COLOURS[0])):
            page.draw_curve(panel, scores.counts.tolist(), scores.curve(name), colour, label=name)
        panel.axhline(scores.threshold, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
        panel.axhline(scores.chance, color=CONTROLS[2], linewidth=0.8)
        low = min(float(scores.scores[name].mean(0).min()) for name in (FRESH, THIS))
        panel.set(xscale="log", xlabel="labels", ylim=(max(min(low, scores.chance), -0.2) - 0.05, 1.02))
        panel.set_title(label, fontweight="bold")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        page.plain_axes(panel)
    for empty in panels[len(efficiency) :]:
        empty.remove()
    panels[0].set_ylabel("held-out score")
    panels[0].legend(frameon=False)
    return figure
