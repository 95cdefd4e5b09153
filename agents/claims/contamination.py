"""Claim 26: the gain of a contaminated pretraining is inflated, and a linear estimate finds the pure gain.

The corpus holds a share of the test's frames with their answers. The gain over a model of few labels is measured at
three shares, and `pure_gain` continues the line to a share of 0. Here the pure gain is known, from a clean corpus.
"""

from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

import envs
from agents.claims.cells import fresh_encoder
from agents.claims.claim import Claim, Verdict, judge
from agents.claims.curves import draw_curves
from rlpre import FrameStore
from rlpre.evaluation.overlap import pure_gain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.probes import labelled_features
from rlpre.evaluation.stats import mean_interval
from rlpre.features import whiten
from rlpre.objectives import make_reader

WORLD, BEHAVIOUR, STEPS = "MiniGrid-DoorKey-8x8-v0", "0.5*random + 0.5*expert:0.3", 6000
LABEL, FEW = "expert", 30  # the answer to predict, and how many of them the model without pretraining knows
SHARES = np.array([0.25, 0.5, 0.75])  # of the test that the corpus holds


def measure(directory: Path, seeds: int, leak: bool = True) -> Verdict:
    """How much nearer to the pure gain the estimate is; without a ``leak`` other frames are added instead."""
    frames = envs.collect(WORLD, directory / "frames", STEPS, 0, BEHAVIOUR)
    gains = np.array([gains_of(frames, seed, leak) for seed in range(seeds)])  # (seeds, a clean corpus and shares)
    pure = gains[:, 0]
    naive = gains[:, 1:].mean(1)
    estimates = [pure_gain(each[None, 1:], SHARES)["pure"].value for each in gains]
    shown = [show_interval(mean_interval(each)) for each in (naive, estimates, pure)]
    measured = (
        f"how much nearer to the pure gain the estimate is: the gain in balanced accuracy is {shown[0]} as measured, "
        f"{shown[1]} as estimated, and {shown[2]} on a clean corpus"
    )
    picture = draw_curves([0, *SHARES], {"gain": gains}, "share of the test in the corpus", "gain")
    return judge(-np.abs(estimates - pure), -np.abs(naive - pure), 0.02, measured, "gain as measured, -error", picture)


def gains_of(frames: FrameStore, seed: int, leak: bool) -> list[float]:
    """Gains over the model of few labels: with a clean corpus, then at each of `SHARES`."""
    encoder = whiten(fresh_encoder(frames, seed, features=32), frames, seed)
    features, label = labelled_features(encoder, make_reader(frames, encoder), [LABEL], seed)[LABEL]
    rest, test = label.folds(seed)[0]
    rest = np.random.default_rng(seed).permutation(rest)
    corpus, spare = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    added = test if leak else spare
    corpora = [corpus[:FEW], *(np.append(corpus, added[: round(share * len(test))]) for share in (0, *SHARES))]
    scores = []
    for rows in corpora:
        model = RandomForestClassifier(class_weight="balanced", random_state=seed)
        scores.append(label.score(model.fit(features[rows], label.values[rows]).predict(features[test]), test))
    return [score - scores[0] for score in scores[1:]]


CLAIM = Claim(
    26,
    "Contamination inflates the gain of a pretraining, and a linear estimate finds the pure gain.",
    measure,
    "the gain as it is measured, on a corpus that holds a share of the test",
)
