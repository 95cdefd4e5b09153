"""The alarm of a pretraining: have features or projections collapsed, and how?"""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from rlpre.measure.health import Health, diagnose, health, raw, sample, some_inputs
from rlpre.measure.probe import fresh
from rlpre.objectives import AnyEncoder, Weighted, make_objective

FEATURES = "features"  # the part that is the encoder's; the others are projections, by their objective's name
BLIND = 0.95  # of the loss of a constant: InfoNCE that stands there has learned nothing

Parts = dict[str, dict[str, Any]]  # the numbers of `Health` by part


def measure(encoder: AnyEncoder, objective: Weighted, reader: Any, seed: int) -> Parts:
    """The health of an encoder's features and of what its objectives compare.

    Args:
        encoder: see `rlpre.measure.health.encoder_health`.
        objective: its heads are left as they are.
        reader: of the frames.
        seed: draws what is measured; the same for all that is to be compared.

    Returns:
        By part; empty where the frames hold fewer than two different inputs.
    """
    rows = some_inputs(reader, seed)
    if len(rows) < 2:
        return {}
    features = sample(encoder, reader, rows, seed)
    parts = {FEATURES: asdict(health(*raw(encoder, features)))}
    for name, part in objective.objectives.items():
        head = copy.deepcopy(part).train()  # with the batch's own statistics, as the loss sees it
        with torch.no_grad():
            latents = [latent for latent in map(head.project, features) if latent is not None]
        if latents:
            parts[name] = asdict(health(*latents))
    return parts


def control(encoder: AnyEncoder, objective: str, reader: Any, seed: int) -> Parts:
    """What `measure` finds of fresh weights, those of the objective's heads among them."""
    untrained = fresh(encoder, seed)
    return measure(untrained, make_objective(objective, untrained, reader.frames).to(encoder.device), reader, seed)


def explain(now: Parts, untrained: Parts, metrics: Mapping[str, Tensor]) -> str | None:
    """Says what has collapsed, and how, in one sentence; None if nothing has.

    Args:
        now: as `measure` gives it.
        untrained: the same of fresh weights, see `control`.
        metrics: of the last batch, in which "NAME/blind" is the loss that a constant would have.
    """
    for part in now:
        found, begun = Health(**now[part]), Health(**untrained[part])
        cause = diagnose(found, begun)
        if cause:
            whose = "features of the encoder" if part == FEATURES else f"projections of objective {part!r}"
            return (
                f"the {whose} have collapsed ({cause}): over {found.inputs:,} different inputs their spread is "
                f"{found.spread:.2g} and their effective rank {found.effective_rank:.1f}, centred "
                f"{found.centred_rank:.1f}, of fresh weights {begun.spread:.2g}, {begun.effective_rank:.1f} "
                f"and {begun.centred_rank:.1f}{_evidence(metrics)}"
            )
    return None


def _evidence(metrics: Mapping[str, Tensor]) -> str:
    for name, blind in metrics.items():
        part, _, kind = name.rpartition("/")
        if kind == "blind" and metrics[f"{part}/loss"] >= BLIND * blind:
            return f"; the loss of {part!r}, {float(metrics[f'{part}/loss']):.2f}, is that of a constant, ln N"
    return ""
