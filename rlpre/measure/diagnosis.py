"""What is measured of an encoder on frames of a target, and the advice that follows.

Fresh weights stand beside every number. Each seed draws other labels and other fresh weights to compare with, so that
the intervals behind the advice span both; encoder and frames are one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.measure.advice import Advice, Evidence, advise
from rlpre.measure.conditioning import Conditioning, conditioning
from rlpre.measure.health import Cause, Health, diagnose, encoder_health, some_inputs
from rlpre.measure.invariance import Invariances, invariances
from rlpre.measure.labels import SEEDS, Efficiency, label_efficiency
from rlpre.measure.overlap import Overlap, overlap
from rlpre.measure.prior_gain import PriorGain, prior_gain
from rlpre.measure.probe import Indices, fresh, read
from rlpre.measure.signal import Signal, signals
from rlpre.measure.sparse import Sparsity, sparse_probe
from rlpre.measure.stats import Interval, area_under_curve, interval, mean
from rlpre.objectives import READERS

T = TypeVar("T")
THIS, FRESH = "this", "fresh"
CONTROLS = (FRESH, *(f"{FRESH} {seed}" for seed in range(1, SEEDS)))
FEW = 100  # labels and fewer: what an agent's first episodes show
LABELS, OVERLAP, PRIORS, CHANGES = "labels", "overlap", "priors", "changes"


@dataclass(frozen=True)
class Findings:
    """What the advice is made of.

    Attributes:
        health: of the features.
        untrained: the same of fresh weights.
        cause: of a collapse; None: healthy.
        efficiency: label-efficiency curves by label, of the encoder (`THIS`) and of fresh weights (`FRESH`).
        few: score of linear heads with up to `FEW` labels less that on fresh weights: the mean height of the
            label-efficiency curve, and that over labels; None: there are no labels.
        most: the same with most labels.
        seen: what the frames of its pretraining hold of the target; None: unknown.
        priors: by label what a head for the frames of its pretraining is worth to the target's.
        unknown: what could not be measured, and why.
    """

    health: Health
    untrained: Health
    cause: Cause | None
    efficiency: dict[str, Efficiency]
    few: Interval | None
    most: Interval | None
    seen: Overlap | None
    priors: dict[str, PriorGain]
    unknown: dict[str, str]

    @property
    def evidence(self) -> Evidence:
        """The numbers that decide."""
        seen = self.seen.observation if self.seen else None
        return Evidence(self.cause, self.few, self.most, seen, {name: of.gain for name, of in self.priors.items()})


@dataclass(frozen=True)
class Diagnosis:
    """Everything on an encoder, see `diagnose_encoder`.

    Attributes:
        advice: what to do with it.
        findings: what that is made of.
        conditioning: of its features over different inputs.
        untrained: the same of fresh weights.
        sparse: by label, in how few dimensions it is found.
        signals: by label that has classes, how far apart features hold them.
        invariances: which changes of a frame features ignore; None for sequences, or without labels.
        unknown: what could not be measured, and why.
    """

    advice: Advice
    findings: Findings
    conditioning: Conditioning
    untrained: Conditioning
    sparse: dict[str, Sparsity]
    signals: dict[str, Signal]
    invariances: Invariances | None
    unknown: dict[str, str]


class Remembering:
    """A `rlpre.measure.probe.Reader` that encodes every input once for each encoder, whoever asks."""

    def __init__(self, frames: FrameStore, encoder: AnyEncoder) -> None:
        self.reader: Any = READERS[encoder.kind](frames, encoder, None, encoder.device)  # type: ignore[arg-type]
        self.frames, self.groups, self.draw, self.distinct = (
            getattr(self.reader, name) for name in ("frames", "groups", "draw", "distinct")
        )
        # rows of single frames that look the same are one input
        self._inputs: Indices = frames.ids if self.groups is None else np.arange(len(frames))
        self._known: dict[AnyEncoder, dict[int, torch.Tensor]] = {}

    def encode(self, encoder: AnyEncoder, rows: Indices) -> torch.Tensor:
        """Features (len(rows), num_features) in evaluation mode, on the CPU."""
        known, inputs = self._known.setdefault(encoder, {}), self._inputs[rows].tolist()
        new = {name: row for name, row in zip(inputs, rows.tolist(), strict=True) if name not in known}
        if new:
            known |= zip(new, self.reader.encode(encoder, np.array([*new.values()])), strict=True)
        return torch.stack([known[name] for name in inputs])


def examine(
    encoder: AnyEncoder, frames: FrameStore, pretrained_on: FrameStore | None = None, reader: Remembering | None = None
) -> Findings:
    """Measures what the advice is made of.

    Args:
        encoder: its mode is restored.
        frames: of the target, with label columns.
        pretrained_on: the frames that it was pretrained on; None: what it has seen is unknown.
        reader: of ``frames``, for those who ask for more.

    Raises:
        RlpreError: if ``pretrained_on`` is not what the encoder says it was pretrained on, frames do not fit it, there
            are fewer than two different ones, or features are not finite.
    """
    _refuse_others(encoder, pretrained_on)
    reader = reader or Remembering(frames, encoder)
    controls = {name: fresh(encoder, seed) for seed, name in enumerate(CONTROLS)}
    now, untrained = encoder_health(encoder, reader), encoder_health(controls[FRESH], reader)
    unknown: dict[str, str] = {}
    curves = _try(unknown, LABELS, lambda: label_efficiency({THIS: encoder, **controls}, reader, baseline=FRESH)) or {}
    few, most = _gains(curves) if curves else (None, None)
    seen, priors = None, {}
    if pretrained_on is None:
        unknown[OVERLAP] = unknown[PRIORS] = "the frames of its pretraining were not given"
    else:
        seen = overlap(pretrained_on, frames, "overlap of frames alone is counted")
        priors = _priors(encoder, pretrained_on, reader, list(curves), unknown)
    shown = {
        label: replace(of, curves={name: of.curves[name] for name in (FRESH, THIS)}) for label, of in curves.items()
    }
    return Findings(now, untrained, diagnose(now, untrained), shown, few, most, seen, priors, unknown)


def diagnose_encoder(encoder: AnyEncoder, frames: FrameStore, pretrained_on: FrameStore | None = None) -> Diagnosis:
    """Measures everything that rlpre can measure of an encoder on frames of a target.

    Args:
        encoder: see `examine`.
        frames: see `examine`.
        pretrained_on: see `examine`.

    Raises:
        RlpreError: see `examine`.
    """
    reader = Remembering(frames, encoder)
    found = examine(encoder, frames, pretrained_on, reader)
    rows, unknown = some_inputs(reader, 0), dict(found.unknown)
    now, untrained = (conditioning(torch.from_numpy(read(each, reader, rows))) for each in (encoder, fresh(encoder)))
    sparse = {} if LABELS in unknown else sparse_probe(encoder, reader)
    strengths = {} if LABELS in unknown else signals(encoder, reader)
    ignored = _try(unknown, CHANGES, lambda: invariances(encoder, reader))
    return Diagnosis(advise(found.evidence), found, now, untrained, sparse, strengths, ignored, unknown)


def _try(unknown: dict[str, str], what: str, measure: Callable[[], T]) -> T | None:
    """What was measured; None if the frames do not serve, and why in ``unknown``."""
    try:
        return measure()
    except RlpreError as error:
        unknown[what] = str(error)
        return None


def _refuse_others(encoder: AnyEncoder, pretrained_on: FrameStore | None) -> None:
    told = encoder.pretraining.get("frames")
    if pretrained_on is not None and told not in (None, pretrained_on.hash):
        raise RlpreError(
            f"the encoder was pretrained on frames {told[:12]}, {pretrained_on.path} holds {pretrained_on.hash[:12]}: "
            "give those, or leave them out"
        )


def _gains(curves: dict[str, Efficiency]) -> tuple[Interval, Interval]:
    """What the encoder's scores are above those of fresh weights, with few labels and with most."""
    few, most = [], []
    for of in curves.values():
        # below chance is no less known than chance, and R² has no end there
        this = np.maximum(of.curves[THIS].scores, of.chance)
        others = np.stack([of.curves[name].scores[seed] for seed, name in enumerate(CONTROLS)])
        gain, kept = this - np.maximum(others, of.chance), of.counts <= FEW
        few.append(area_under_curve(np.log(of.counts[kept]), gain[:, kept]))
        most.append(gain[:, -1])
    rng = np.random.default_rng(0)
    known, all_known = (interval(np.mean(gains, axis=0)[:, None], rng, mean) for gains in (few, most))
    return known, all_known


def _priors(
    encoder: AnyEncoder, source: FrameStore, target: Remembering, labels: list[str], unknown: dict[str, str]
) -> dict[str, PriorGain]:
    if source.hash == target.frames.hash:
        unknown[PRIORS] = "the target's frames are those of its pretraining"
        return {}
    reader, found, refused = Remembering(source, encoder), {}, dict[str, str]()
    for label in labels:
        if gain := _try(refused, label, partial(prior_gain, encoder, reader, target, label)):
            found[label] = gain
    if refused:
        unknown[PRIORS] = "; ".join(refused.values())
    return found
