"""Claim 16: pretraining is an informative prior, which trades bias for variance and pays with few labels.

Theory: with n rows (X'X = n I) of noise variance t^2, d true weights at squared distance D from the prior, and a prior
of strength l, the squared error of the weights is (l^2 D + n t^2 d) / (n + l)^2: bias and variance. The prior helps if
and only if D < t^2 d (2 / l + 1 / n), and the best strength is t^2 d / D for any n.
"""

from pathlib import Path

import numpy as np

import envs
from agents.claims.cells import fresh_encoder
from agents.claims.claim import Claim, Verdict, judge
from agents.claims.curves import draw_curves
from rlpre import FrameStore
from rlpre.evaluation.prior import PriorHead, prior_gain
from rlpre.evaluation.probes import Factor, Floats, labelled_features
from rlpre.features import whiten
from rlpre.objectives import make_reader

SOURCE, TARGET = "MiniGrid-DoorKey-6x6-v0", "MiniGrid-DoorKey-8x8-v0"
BEHAVIOUR, STEPS = "0.5*random + 0.5*expert:0.3", 6000
LABEL, ROWS = "expert", 20  # the label, and how many of the target are known
DIM, NOISE, DISTANCE = 16, 1.0, 4.0  # of the theory's problem: d, t and D
STRENGTHS = (0.5, 1, 2, 4, 8, 16, 32, 64)  # l; the best is t^2 d / D = 4


def measure(directory: Path, seeds: int, permuted: bool = False) -> Verdict:
    """The gain of a prior from another world at few labels; ``permuted`` takes the labels of that world away."""
    stores = [envs.collect(env, directory / env, STEPS, 0, BEHAVIOUR) for env in (SOURCE, TARGET)]
    own, shuffled = [], []
    for seed in range(seeds):
        source, target = both_features(*stores, seed)
        wrong = source[0][np.random.default_rng(seed).permutation(len(source[0]))], source[1]
        own.append(gain_of(wrong if permuted else source, target, seed))
        shuffled.append(gain_of(wrong, target, seed))
    risks = np.array([measured_risks(seed) for seed in range(seeds)])
    theory = expected_risks()
    misfit = np.abs(risks.mean(0) / theory - 1).max()
    measured = (
        f"gain in balanced accuracy of the expert's action after {ROWS} labels by a prior head from another world; "
        f"bias + variance predicts measured risks within {misfit:.1%}"
    )
    curves = {"measured": risks, "theory": np.tile(theory, (seeds, 1))}
    picture = draw_curves(STRENGTHS, curves, "strength of the prior", "risk", "xy")
    return judge(own, shuffled, 0.05, measured, "prior from permuted labels, gain", picture)


def both_features(source: FrameStore, target: FrameStore, seed: int) -> list[tuple[Floats, Factor]]:
    """Features of both worlds' frames by one encoder with fresh weights, whitened on the first, and the label."""
    encoder = whiten(fresh_encoder(source, seed), source, seed)
    return [labelled_features(encoder, make_reader(store, encoder), [LABEL], seed)[LABEL] for store in (source, target)]


def gain_of(source: tuple[Floats, Factor], target: tuple[Floats, Factor], seed: int) -> float:
    """The mean gain over ten draws of the labels."""
    return prior_gain(source, target, ROWS, range(10 * seed, 10 * seed + 10)).gain.value


def measured_risks(seed: int, rows: int = 20, draws: int = 300) -> np.ndarray:
    """Squared errors (strengths,) of the weights of `PriorHead`, means over draws of the noise and the prior."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, DIM))
    x = np.linalg.qr(x - x.mean(0))[0] * rows**0.5
    found = []
    for _ in range(draws):
        true, away = rng.standard_normal((2, DIM))
        prior = true + away * (DISTANCE**0.5 / np.linalg.norm(away))
        y = x @ true + NOISE * rng.standard_normal(rows)
        heads = (PriorHead.fit(x, y, pretrained=prior, strengths=(0, each)) for each in STRENGTHS)
        found.append([np.square(head.weights - true).sum() for head in heads])
    return np.mean(found, axis=0)


def expected_risks(rows: int = 20) -> np.ndarray:
    """The same in theory."""
    strength = np.array(STRENGTHS)
    return (strength**2 * DISTANCE + rows * NOISE**2 * DIM) / (rows + strength) ** 2


CLAIM = Claim(
    16,
    "Pretraining is an informative prior: it trades bias for variance, and pays with few labels.",
    measure,
    "the same prior, learned from permuted labels",
)
