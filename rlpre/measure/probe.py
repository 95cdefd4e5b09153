"""Linear probes: what can be read linearly from frozen features?

[0] Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
[1] Zhang et al. 2022, "Light-weight probing of unsupervised representations for reinforcement learning".
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlpre.encoders import Encoder
from rlpre.frames import FrameStore

NUMBERS = ("distance",)  # labels that are quantities, scored by R²; the others are classes
NAMES = ("layout",)  # labels that say which episode a frame is from, not what is in it
ROWS = 3000  # distinct inputs a probe reads
MIN_ROWS = 40  # fewer labelled ones say nothing
FOLDS = 5  # of the cross-validation
RIDGE = 1.0  # scikit-learn's default strength, on standardised features
CHUNK = 512


def encode(encoder: Encoder, store: FrameStore, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Features (len(rows), num_features) of stored frames, in evaluation mode, on the CPU."""
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
        features = [encoder(store.decode(store.read(chunk).to(encoder.device))).float().cpu() for chunk in chunks]
    encoder.train(was_training)
    return torch.cat(features)


class Reader(Protocol):
    """How a kind of encoder reads a store.

    Attributes:
        frames: the store.
        groups: (N,) int64, the same number for rows that a probe must not be trained and tested on; None: any may.
    """

    frames: FrameStore
    groups: npt.NDArray[np.int64] | None

    def distinct(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Some of ``rows``, between any two of which the encoder could tell."""

    def encode(self, encoder: Any, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Features (len(rows), num_features) in evaluation mode, on the CPU."""


def linear_probe(encoder: object, reader: Reader, seed: int = 0) -> dict[str, float]:
    """Scores of ridge probes for every label of the store.

    Each distinct input is used at most once and cross-validated, so none is both trained on and tested.

    Args:
        encoder: frozen for the purpose; its mode is restored.
        reader: of frames with label columns.
        seed: draws the rows and their order.

    Returns:
        For a class label its balanced accuracy in [0, 1], for a quantity R² (at most 1). Labels with fewer than
        ``MIN_ROWS`` known distinct inputs or ``FOLDS`` groups, or fewer than two values that occur ``FOLDS`` times,
        and labels that only name the episode, are left out.
    """
    rng, store, groups = np.random.default_rng(seed), reader.frames, reader.groups
    rows = rng.permutation(reader.distinct(rng.permutation(len(store))))[:ROWS]
    features = reader.encode(encoder, rows).numpy()
    scores: dict[str, float] = {}
    for name in store.labels:
        if name in NAMES:
            continue
        label = store.column(name)[rows]
        known = label >= 0
        apart = None if groups is None else groups[rows[known]]
        if known.sum() < MIN_ROWS or (apart is not None and len(np.unique(apart)) < FOLDS):
            continue
        score = _score(features[known], label[known], apart, quantity=name in NUMBERS)
        if score is not None:
            scores[name] = score
    return scores


def _score(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.int16], groups: npt.NDArray[np.int64] | None, quantity: bool
) -> float | None:
    # here, because scikit-learn takes more than a second to import
    from sklearn.linear_model import Ridge, RidgeClassifier
    from sklearn.metrics import r2_score, recall_score
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(y, return_counts=True)
    common = classes[counts >= FOLDS]  # a rarer class would miss from the training part
    if len(common) < 2:
        return None
    ridge = Ridge(RIDGE) if quantity else RidgeClassifier(RIDGE, class_weight="balanced")
    folds = KFold(FOLDS) if groups is None else GroupKFold(FOLDS)
    answer = cross_val_predict(make_pipeline(StandardScaler(), ridge), x, y, cv=folds, groups=groups)
    if quantity:
        return float(r2_score(y, answer))
    return float(recall_score(y, answer, labels=common, average="macro"))
