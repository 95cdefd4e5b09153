"""Claim 20: a sparse probe finds each factor in few dimensions."""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import collect
from rlpre import pretrain
from rlpre.evaluation.probes import Factor, labelled_features, sparsity
from rlpre.objectives import make_reader

LEVEL, LABELS = "BabyAI-GoToObj-v0", ("front", "expert")


def measure(directory: Path, seeds: int, steps: int = 250, planted: bool = False) -> Verdict:
    """By how many doublings a random rotation needs more features; ``planted`` puts the factor into one each."""
    frames, sizes = collect(directory / "frames", LEVEL, 6000), []
    settings = {"objective": "temporal+inverse", "features": 64, "batch": 64, "steps": steps}
    for seed in range(seeds):
        encoder = pretrain(frames, out=directory / f"{seed}", seed=seed, **settings).encoder
        labelled = labelled_features(encoder, make_reader(frames, encoder), LABELS, seed)
        found = [_sizes(x, factor, seed, planted) for x, factor in labelled.values()]
        sizes.append(np.mean(found, 0))
    rotated, own = -np.array(sizes).T
    measured = (
        "log2 of the features that a probe needs (95 % of the full score), a random rotation above the encoder's own"
    )
    return judge(own, rotated, 0.5, measured, "-log2 size, rotated")


def _sizes(x: np.ndarray, factor: Factor, seed: int, planted: bool) -> tuple[float, float]:
    """log2 of the features needed after a rotation and before it."""
    if planted:
        x = x.copy()
        x[:, : len(factor.classes)] = 10 * (factor.values[:, None] == factor.classes)
    smallest = sparsity(x, factor, seed).smallest
    return tuple(float(np.log2(smallest[basis] or x.shape[1])) for basis in ("rotated", "features"))


CLAIM = Claim(
    20,
    "A sparse probe finds each factor in few dimensions.",
    measure,
    "a random rotation of the features",
    needs="an objective that rewards sparse features; none here tells one basis from another",
)
