"""Claim 19: contrastive learning finds the invariances that it is shown, and no others."""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import collect
from rlpre import pretrain
from rlpre.evaluation.invariance import invariances
from rlpre.objectives import make_reader

LEVEL = "BabyAI-GoToObj-v0"
SHOWN, OTHERS = "shift", ("flip", "hue")


def measure(directory: Path, seeds: int, steps: int = 250) -> Verdict:
    """By how many halvings features move less than those of fresh weights: under shifts, above flips and hue."""
    frames, moved = collect(directory / "frames", LEVEL, 6000), []
    settings = {"objective": "contrastive", "features": 64, "batch": 64, "steps": steps}
    for seed in range(seeds):
        encoder = pretrain(frames, out=directory / f"{seed}", seed=seed, **settings).encoder
        changes = invariances(encoder, make_reader(frames, encoder), ["front"], (SHOWN, *OTHERS), seed).changes
        less = {name: np.log2(change.fresh / change.moved) for name, change in changes.items()}
        moved.append((less[SHOWN], np.mean([less[name] for name in OTHERS])))
    measured = (
        "log2 of how much less features move than fresh ones do: under shifts, which were shown, above flips and hue"
    )
    return judge(*zip(*moved, strict=True), 0.3, measured, "flips and hue")


CLAIM = Claim(
    19,
    "Contrastive learning finds the invariances that it is shown.",
    measure,
    "changes that it was not shown, flips and hue",
)
