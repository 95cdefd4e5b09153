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

LEVEL, MOST, NEAR = "MiniGrid-DoorKey-6x6-v0", 100_000, 0.05  # NEAR: share of the first excess loss that is left


def measure(directory: Path, seeds: int, steps: int = 250, white: bool = True) -> Verdict:
    """By how many doublings whitening shortens the descent; the control is a random rotation, which keeps the scale."""
    frames = collect(directory / "frames", LEVEL, 6000)
    rows = distinct(frames)
    target = np.eye(7)[frames.column("expert")[rows]]
    found = []
    for seed in range(seeds):
        fresh = fresh_cnn(frames.decode(frames.read(rows)), seed)
        out = directory / f"{seed}"
        trained = pretrain(
            frames, out=out, encoder=fresh, objective="temporal+inverse", steps=steps, batch=64, seed=seed
        ).encoder
        x = {"fresh": encode(fresh, frames, rows).numpy(), "pretrained": encode(trained, frames, rows).numpy()}
        x["rotated"] = x["pretrained"] @ np.linalg.qr(np.random.default_rng(seed).standard_normal((64, 64)))[0]
        x["white"] = encode(whiten(trained, frames), frames, rows).numpy() if white else x["rotated"]
        found.append({name: np.log2(descent(features, target)) for name, features in x.items()})
    saved = {name: [each["pretrained"] - each[name] for each in found] for name in ("white", "rotated")}
    start = show_interval(mean_interval([each["fresh"] - each["pretrained"] for each in found]))
    measured = (
        f"log2 of the steps of gradient descent that whitening saves; pretrained instead of fresh weights save {start}"
    )
    return judge(saved["white"], saved["rotated"], 0.5, measured, "rotation")


def descent(features: np.ndarray, target: np.ndarray) -> int:
    """Steps until all but `NEAR` of the excess squared loss is gone; in closed form, in the basis of the Hessian."""
    x, y = features - features.mean(0), target - target.mean(0)
    values, basis = np.linalg.eigh(x.T @ x / len(x))
    values = values.clip(1e-9)
    excess = np.square(basis.T @ (x.T @ y / len(x))).sum(1) / values  # of each direction, at weights 0
    steps = np.unique(np.logspace(0, np.log10(MOST), 400).astype(int))
    left = (1 - values / values.max()) ** (2 * steps[:, None]) @ excess / excess.sum()
    return int(steps[(left < NEAR).argmax()]) if (left < NEAR).any() else MOST


CLAIM = Claim(
    12,
    "A better start and a better landscape save steps.",
    measure,
    "a random rotation of the features, which does not change their conditioning",
    answer_of("why", "pretrained-whitened", "fresh"),
)
