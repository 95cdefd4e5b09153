"""Sparse probes: in how few dimensions is a factor found?

The L1 penalty chooses, ridge answers: a group lasso on the indicators of the classes takes features up one after the
other, for all classes together; probes of the first k of them are then refitted without it, so that the shrinking of
the L1 penalty does not count against few features. Choice and fit see the training part of a fold alone.

Few dimensions say something about *these* axes only if others need more: the same is asked of the features turned by a
random rotation, in which the same is known by none in particular, and of their principal components.

[0] Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing".
[1] Meinshausen 2007, "Relaxed Lasso".
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rlpre.encoders import AnyEncoder
from rlpre.measure.probe import RIDGE, Factor, Floats, Indices, Reader, cross_score, factors, read, standardised

ENOUGH = 0.95  # of what the dense probe scores above chance
NOTHING = 0.05  # a dense probe that is no further above chance finds nothing
PENALTIES = np.logspace(0, -2, 40)  # of the path, in units of the smallest that takes up no feature
TINY = 1e-5  # of the largest singular value: a component below is rounding


@dataclass(frozen=True)
class Sparsity:
    """How the score of a factor's probe grows with the number of features that it may read.

    Attributes:
        dim: features in all.
        chance: the score of an answer that knows nothing.
        dense: the held-out score with all features.
        sizes: numbers k of features that were tried, the last is ``dim``.
        scores: by basis ("features", "rotated", "pca") the held-out score at each of the sizes.
        smallest: by basis the smallest of the sizes with which the score above chance is ``ENOUGH`` of the dense one;
            None if there is none, or if even the dense probe finds nothing.
    """

    dim: int
    chance: float
    dense: float
    sizes: tuple[int, ...]
    scores: dict[str, tuple[float, ...]]
    smallest: dict[str, int | None]


def sparsity(features: Floats, of: Factor, seed: int = 0) -> Sparsity:
    """Sparse probes of one factor.

    Args:
        features: (n, dim) of the factor's n inputs.
        of: what is asked.
        seed: draws what is held out and the rotations, one for each fold.
    """
    dim = features.shape[1]
    sizes = np.unique(np.append(np.round(2 ** np.arange(0, np.log2(dim), 1 / 3)), dim)).astype(int).tolist()
    dense = cross_score(features, of, seed)
    answers: dict[str, npt.NDArray[Any]] = {}
    for number, (train, test) in enumerate(of.folds(seed)):
        for name, basis in _bases(features, train, np.random.default_rng((seed, number))).items():
            into = answers.setdefault(name, np.empty((len(sizes), len(features))))
            into[:, test] = _answers(standardised(basis, train), of, train, test, sizes)
    scores = {name: tuple(of.score(row) for row in rows) for name, rows in answers.items()}
    enough = of.chance + ENOUGH * (dense - of.chance) if dense > of.chance + NOTHING else np.inf
    smallest = {
        name: next((size for size, score in zip(sizes, found, strict=True) if score >= enough), None)
        for name, found in scores.items()
    }
    return Sparsity(dim, of.chance, dense, tuple(sizes), scores, smallest)


def sparse_probe(
    encoder: AnyEncoder, reader: Reader, names: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Sparsity]:
    """Sparse probes of an encoder's features.

    Args:
        encoder: its mode is restored.
        reader: of frames with label columns.
        names: labels to ask about; None: all that can be.
        seed: draws the inputs, what is held out, and the rotations.

    Raises:
        RlpreError: if a label cannot be asked about, the encoder does not fit the frames, or features are not finite.
    """
    rows, asked = factors(reader, names, seed)
    features = read(encoder, reader, rows)
    return {each.name: sparsity(features[each.places], each, seed) for each in asked}


def _bases(features: Floats, train: Indices, rng: np.random.Generator) -> dict[str, Floats]:
    """The features in each basis, (n, at most dim), found on the training part alone."""
    plain = standardised(features, train)
    rotation = np.linalg.qr(rng.standard_normal((plain.shape[1],) * 2))[0]
    _, singular, components = np.linalg.svd(plain[train], full_matrices=False)
    kept = components[singular > TINY * singular[0]]
    return {"features": plain, "rotated": plain @ rotation, "pca": plain @ kept.T}


def _answers(x: Floats, of: Factor, train: Indices, test: Indices, sizes: list[int]) -> list[npt.NDArray[Any]]:
    """What probes of the first features say about the test inputs, by size; as `ridge`, but all from one product."""
    values = of.values[train]
    classes, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    targets = values[:, None].astype(float) if of.quantity else np.eye(len(classes))[place]
    share = np.full(len(train), 1 / len(train)) if of.quantity else 1 / (len(classes) * counts[place])
    center, middle = share @ x[train], share @ targets
    root = np.sqrt(share)[:, None]
    q, r = np.linalg.qr(root * (x[train] - center))  # these dim rows have the same answers as all n
    asked = q.T @ (root * (targets - middle))
    order, gram, moment = _order(r, asked), r.T @ r, r.T @ asked
    said = []
    for size in sizes:
        first = order[:size]
        penalty = RIDGE / len(train) * np.eye(len(first))
        weights = np.linalg.solve(gram[np.ix_(first, first)] + penalty, moment[first])
        answer = (x[test][:, first] - center[first]) @ weights + middle
        said.append(answer[:, 0] if of.quantity else classes[answer.argmax(1)])
    return said


def _order(known: Floats, asked: Floats) -> Indices:
    """The columns of ``known`` (rows, dim) in the order in which a group lasso takes them up to explain ``asked``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import enet_path

    largest = np.linalg.norm(known.T @ asked, axis=1).max() / len(known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the order is known long before the coefficients
        _, path, _ = enet_path(known, asked, l1_ratio=1.0, alphas=largest * PENALTIES, max_iter=100, tol=1e-3)
    weights = np.linalg.norm(path, axis=0)  # (dim, penalties)
    taken = np.where(weights.any(axis=1), (weights > 0).argmax(axis=1), len(PENALTIES))
    at_entry = weights[np.arange(len(weights)), np.minimum(taken, len(PENALTIES) - 1)]
    return np.lexsort((-at_entry, taken))
