"""Claim 17: the strength of the signal in the features decides how many labels are enough.

Theory: features are ``z = a y u + noise`` with labels y = -1 or 1, a unit vector u, and noise of SD s in each of d
dimensions. From m labels the direction is estimated as the mean of y z, and a new input is classified rightly with
probability Phi(a^2 / (s sqrt(a^2 + s^2 d / m))). At d = 9, s = .54 and m = 10 this is .95 for a = 1 and .80 for a = .6.

Here the signal of a label in real features is the separation d' along a held-out probe direction (a / s = d' / 2).
"""

from pathlib import Path

import numpy as np
from scipy.stats import norm, spearmanr

import envs
from agents.claims.cells import fresh_encoder
from agents.claims.claim import Claim, Verdict, judge
from agents.claims.curves import draw_curves
from rlpre import FrameStore
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.probes import Factor, factors, label_efficiency, read, separation
from rlpre.evaluation.stats import mean_interval
from rlpre.features import whiten
from rlpre.objectives import make_reader

WORLDS = ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-Unlock-v0", "MiniGrid-LavaCrossingS9N1-v0")
BEHAVIOUR, STEPS = "0.5*random + 0.5*expert:0.3", 4000
LABELS, RARE = 10, 0.05  # labels to learn from; labels that fewer inputs have are left out
SHUFFLES = 100  # of the control

DIM, NOISE, SIGNALS, COUNTS = 9, 0.54, (1.0, 0.6), (4, 10, 30, 100, 300)  # of the theory's example


def measure(directory: Path, seeds: int, permuted: bool = False) -> Verdict:
    """The rank correlation of signal and accuracy over labels; ``permuted`` gives each label another one's signal."""
    frames = envs.collect(WORLDS, directory / "frames", STEPS, 0, BEHAVIOUR)
    own, others, labels = [], [], 0
    for seed in range(seeds):
        rng, (signal, score) = np.random.default_rng(seed), signals_and_scores(frames, seed)
        labels = len(score)
        signal = rng.permutation(signal) if permuted else signal
        own.append(float(spearmanr(signal, score).statistic))
        others.append(float(np.mean([spearmanr(rng.permutation(signal), score).statistic for _ in range(SHUFFLES)])))
    curves = {f"a = {a:g}": simulated(a, seeds) for a in SIGNALS}
    curves |= {f"theory, {a:g}": np.tile(theory(a, np.array(COUNTS)), (seeds, 1)) for a in SIGNALS}
    strong, weak = (show_interval(mean_interval(curves[f"a = {a:g}"][:, COUNTS.index(LABELS)])) for a in SIGNALS)
    measured = (
        f"rank correlation of d' and accuracy after {LABELS} labels, over {labels} labels of real frames; in the "
        f"theory's example a = 1 gives {strong} and a = .6 {weak}"
    )
    return judge(
        own, others, 0.3, measured, "d' of another label", draw_curves(COUNTS, curves, "labels", "accuracy", "x")
    )


def signals_and_scores(frames: FrameStore, seed: int) -> tuple[list[float], list[float]]:
    """For each yes-or-no label: its separation in whitened features of fresh weights, and accuracy after `LABELS`."""
    encoder = whiten(fresh_encoder(frames, seed, features=32), frames, seed)
    reader = make_reader(frames, encoder)
    rows, known = factors(reader, ("front", "carrying", "expert"), seed)
    features, signals, scores = read(encoder, reader, rows), [], []
    for each in known:
        for value in each.classes:
            yes = (each.values == value).astype(int)
            if not RARE < yes.mean() < 1 - RARE:
                continue
            label, x = Factor.from_labels(f"{each.name} {value}", yes), features[each.places]
            signals.append(separation(x, label, seed)[1])
            scores.append(float(label_efficiency({"": x}, label, counts=(LABELS,)).scores[""].mean()))
    return signals, scores


def theory(a: float, labels: np.ndarray) -> np.ndarray:
    """The accuracy after these numbers of labels."""
    return np.asarray(norm.cdf(a**2 / (NOISE * np.sqrt(a**2 + NOISE**2 * DIM / labels))))


def simulated(a: float, seeds: int) -> np.ndarray:
    """The same, measured: (seeds, points), each the mean of 200 draws of the labels."""
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        means = [a * np.eye(DIM)[0] + NOISE / m**0.5 * rng.standard_normal((200, DIM)) for m in COUNTS]
        tests = a * np.eye(DIM)[0] + NOISE * rng.standard_normal((200, DIM))
        found.append([float((mean @ tests.T > 0).mean()) for mean in means])
    return np.array(found)


CLAIM = Claim(
    17,
    "The strength of the signal in the features decides how many labels are enough.",
    measure,
    "the signal of another label in the same features",
)
