"""Claim 12: a better start and a better landscape both save steps.

A linear head learns the expert's action by gradient descent, at the largest rate that is stable. The start is that of
the features (fresh or pretrained weights), the landscape their conditioning (plain or whitened).
"""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import collect, distinct, fresh_cnn
from rlpre import pretrain, whiten
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.features import encode

LEVEL = "MiniGrid-DoorKey-6x6-v0"
STEPS = np.unique(np.logspace(0, 6, 600).astype(int))
NEAR = 0.9  # of what the weakest features can explain


def measure(directory: Path, seeds: int, steps: int = 250) -> Verdict:
    """The smaller of two savings in doublings: of a pretrained start (both whitened) and of whitening (pretrained)."""
    frames = collect(directory / "frames", LEVEL, 6000)
    rows = distinct(frames)
    target, found = np.eye(7)[frames.column("expert")[rows]], []
    for seed in range(seeds):
        fresh = fresh_cnn(frames.decode(frames.read(rows)), seed)
        settings = {"objective": "temporal+inverse", "steps": steps, "batch": 64, "seed": seed}
        trained = pretrain(frames, out=directory / f"{seed}", encoder=fresh, **settings).encoder
        encoders = {"fresh": whiten(fresh, frames), "plain": trained, "white": whiten(trained, frames)}
        x = {name: encode(encoder, frames, rows).numpy() for name, encoder in encoders.items()}
        x["rotated"] = x["plain"] @ np.linalg.qr(np.random.default_rng(seed).standard_normal((64, 64)))[0]
        found.append(savings(x, target))
    start, landscape, rotation = np.transpose(found)
    shown = [show_interval(mean_interval(each)) for each in (start, landscape)]
    measured = (
        "log2 of the steps of gradient descent saved, the smaller of two: "
        f"by a pretrained start {shown[0]}, by whitening {shown[1]}"
    )
    return judge(np.minimum(start, landscape), rotation, 0.5, measured, "rotation")


def savings(x: dict[str, np.ndarray], target: np.ndarray) -> tuple[float, float, float]:
    """Doublings saved by the start, by the landscape, and by a rotation, to what all features can explain."""
    curves = {name: explained(features, target) for name, features in x.items()}
    level = NEAR * min(curve[-1] for curve in curves.values())
    steps = {name: np.log2(STEPS[(curve >= level).argmax()]) for name, curve in curves.items()}
    return steps["fresh"] - steps["white"], steps["plain"] - steps["white"], steps["plain"] - steps["rotated"]


def explained(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The share of the squared loss that is gone after each of `STEPS`; in closed form, in the basis of the Hessian."""
    x, y = features - features.mean(0, dtype=np.float64), target - target.mean(0)
    values, basis = np.linalg.eigh(x.T @ x / len(x))
    kept = values > 1e-9 * values.max()
    values, gain = values[kept], np.square(basis.T @ (x.T @ y / len(x))).sum(1)[kept] / values[kept]
    return (1 - (1 - values / values.max()) ** (2 * STEPS[:, None])) @ gain / np.square(y).sum(1).mean()


CLAIM = Claim(
    12,
    "A better start and a better landscape save steps.",
    measure,
    "a random rotation of the features, which does not change their conditioning",
    answer_of("why", "pretrained-whitened", "fresh"),
    "pretrained features that tell more of the label than fresh ones, as whitening does not change what they tell",
)
