"""A Bayesian linear head on frozen features with two Gaussian priors, and the value of such a prior.

Targets are ``y = x w + b`` plus noise of variance t² [0]. The priors are a parent task's head ``w_par`` with strength λ
and the pretraining's head ``w_pre`` with strength μ; the bias has none, so X and y are centred. The estimate is

    (X'X + (λ + μ) I) w = X'y + λ w_par + μ w_pre

A strength is t² over the variance of the prior: it counts like as many rows of features of unit variance. Only if X'X
is n I is w the mean ``(n θ + λ w_par + μ w_pre) / (n + λ + μ)`` of the least-squares head θ and the priors. On real
features that mean would trust θ even in directions without data.

**Strengths** maximise the evidence ``p(y | X, λ, μ)``, with the noise that maximises it [1]. A prior that is not given
is 0, as in ridge regression, so the evidence of a single prior also chooses how far to shrink it towards 0.

**When a prior helps**: with strength λ at squared distance δ² from the true d weights, the estimate is better than
least squares if and only if ``δ² < t² d (2 / λ + 1 / n)``; the best strength is λ* = t² d / δ² for any n. This holds
for X'X = n I. In general it holds for prediction errors over the given rows if δ² is spread evenly over the weights,
where n is the mean of the eigenvalues of X'X with weights (eigenvalue + λ)^-2. δ² is unknown and estimated as
t² d / λ* at the strength λ* of highest evidence.

References:
    [0] Bishop 2006, "Pattern Recognition and Machine Learning", sections 3.3 to 3.5.
    [1] MacKay 1992, "Bayesian Interpolation".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlpre.errors import RlpreError
from rlpre.evaluation.probes import Factor
from rlpre.evaluation.probes import Floats as Features
from rlpre.evaluation.stats import Interval, mean_interval
from rlpre.features import finite

Floats = NDArray[np.float64]
Strengths = tuple[float, float]  # λ of the parent's head, μ of the pretrained one

GRID = np.logspace(-8, 6, 281)  # strengths to try, in units of the largest eigenvalue of X'X; steps of twelve per cent


@dataclass(frozen=True, eq=False)
class PriorHead:
    """A fitted head; made by `fit`."""

    weights: Floats  # (d,), or (d, k) for k targets; `torch.nn.Linear` holds their transpose
    bias: Floats  # () or (k,)
    strengths: Strengths  # λ and μ
    noise: float  # t², in the target's unit squared, one for all targets
    evidence: float  # log marginal likelihood of the centred targets
    distance: float  # δ², the estimated squared distance of the two priors together from the true weights
    limit: float  # distance up to which they help at these strengths; strengths chosen by evidence always pass
    _rows: _Rows = field(repr=False)

    @staticmethod
    def fit(
        features: ArrayLike,
        targets: ArrayLike,
        parent: ArrayLike | None = None,
        pretrained: ArrayLike | None = None,
        strengths: Strengths | None = None,
    ) -> PriorHead:
        """Fits a head.

        Args:
            features: (n, d) of an encoder, n >= 2.
            targets: (n,) or (n, k), in one unit; for classes a column of 0 and 1 for each.
            parent: weights (d,) or (d, k) of a head on the same features for a related task, such as the same label
                in another world; None: 0.
            pretrained: weights of a head for the pretraining's task, such as the action for ``inverse``; None: 0.
            strengths: λ and μ, at least 0 and not both 0; None: those of the highest evidence.

        Raises:
            RlpreError: if shapes do not fit, a number is not finite, all features or all targets are constant, or
                strengths are out of range.
        """
        x = _checked_features(features)
        y = _checked_targets(targets, x)
        rows = _Rows(x, y.reshape(len(y), -1))
        shape = (x.shape[1], *y.shape[1:])
        before, base = _checked_prior(parent, shape, "parent"), _checked_prior(pretrained, shape, "pretrained")
        chosen = strengths or rows.best(before, base)
        if not (min(chosen) >= 0 and 0 < sum(chosen) < inf):
            raise RlpreError(f"strengths are {chosen[0]:g} and {chosen[1]:g}: give numbers from 0 on, not both 0")
        strength = float(sum(chosen))
        prior = (chosen[0] * before + chosen[1] * base) / strength
        weights = rows.solve(prior, strength).reshape(shape)
        evidence, noise = map(float, rows.evidence(rows.residual(prior), np.asarray(strength)))
        bias = np.asarray(y.mean(axis=0) - rows.centre @ weights)
        best = sum(rows.best(prior, prior))
        spread = prior.size * float(rows.evidence(rows.residual(prior), np.asarray(best))[1])
        limit = spread * (2 / strength + 1 / rows.effective(strength))
        return PriorHead(weights, bias, chosen, noise, evidence, spread / best, limit, rows)

    def predict(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """Predicts the targets of ``features`` (m, d).

        Returns:
            The mean, (m,) or (m, k), and the variance (m,), the same for every target. The variance includes the noise
            and the uncertainty of weights and bias, but not that of the noise itself.

        Raises:
            RlpreError: if features are of another width, or not finite.
        """
        x = _checked_features(features)
        if x.shape[1] != len(self.weights):
            raise RlpreError(f"features have {x.shape[1]} dimensions, the head {len(self.weights)}: use one encoder")
        return x @ self.weights + self.bias, self.noise * self._rows.leverage(x, sum(self.strengths))


class _Rows:
    """Training rows in the basis of their singular vectors: one decomposition serves all strengths."""

    def __init__(self, features: Floats, targets: Floats) -> None:
        self.centre = features.mean(axis=0)
        left, singular, right = np.linalg.svd(features - self.centre, full_matrices=False)
        kept = singular > singular[0] * max(features.shape) * np.finfo(np.float64).eps
        self.singular, self.directions = singular[kept], right[kept].T
        self.eigenvalues = self.singular**2
        y = targets - targets.mean(axis=0)
        self.explained = left[:, kept].T @ y
        rounding = (np.finfo(np.float64).eps * np.linalg.norm(y)) ** 2
        self.unexplained = float(np.square(y - left[:, kept] @ self.explained).sum() + rounding)  # by any weights
        self.count, self.targets = targets.shape

    def residual(self, weights: Floats) -> Floats:
        """Targets minus the predictions of ``weights`` (d, k): (directions, k)."""
        return np.asarray(self.explained - self.singular[:, None] * (self.directions.T @ weights))

    def solve(self, prior: Floats, strength: float) -> Floats:
        """The head (d, k) with a prior at ``prior`` (d, k)."""
        gain = self.singular / (self.eigenvalues + strength)
        return np.asarray(prior + self.directions @ (gain[:, None] * self.residual(prior)))

    def evidence(self, residual: Floats, strength: Floats) -> tuple[Floats, Floats]:
        """The log evidence, and the noise that maximises it, of residuals (..., directions, k) and strengths (...)."""
        freedom = (self.count - 1) * self.targets  # the bias takes one
        ratio = self.eigenvalues / strength[..., None]
        noise = ((np.square(residual).sum(axis=-1) / (1 + ratio)).sum(axis=-1) + self.unexplained) / freedom
        volume = self.targets * np.log1p(ratio).sum(axis=-1)
        return -0.5 * (freedom * (np.log(2 * np.pi * noise) + 1) + volume), noise

    def best(self, parent: Floats, pretrained: Floats) -> Strengths:
        """λ and μ of the highest evidence; for each total strength the parent's share has a closed form."""
        residual = self.residual(pretrained)
        step = residual - self.residual(parent)
        strength = GRID * self.eigenvalues[0]
        trust = 1 / (strength[:, None] + self.eigenvalues)
        along, size = trust @ (residual * step).sum(axis=1), trust @ np.square(step).sum(axis=1)
        share = np.clip(np.divide(along, size, out=np.zeros_like(size), where=size > 0), 0, 1)
        at = self.evidence(residual - share[:, None, None] * step, strength)[0].argmax()
        return float(share[at] * strength[at]), float((1 - share[at]) * strength[at])

    def effective(self, strength: float) -> float:
        """The effective number of rows n, see the top of this file."""
        trust = (self.eigenvalues + strength) ** -2.0
        return float(trust @ self.eigenvalues / trust.sum())

    def leverage(self, features: Floats, strength: float) -> Floats:
        """Variances (m,) of predictions, in units of the noise."""
        x = features - self.centre
        inside = np.square(x @ self.directions)
        outside = np.maximum(np.square(x).sum(axis=1) - inside.sum(axis=1), 0.0)
        return np.asarray(1 + 1 / self.count + inside @ (1 / (self.eigenvalues + strength)) + outside / strength)


def _checked_features(features: ArrayLike) -> Floats:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.size:
        raise RlpreError(f"features are of shape {x.shape}: give (rows, dimensions)")
    return np.asarray(finite(x, "features"))


def _checked_targets(targets: ArrayLike, x: Floats) -> Floats:
    y = np.asarray(targets, np.float64)
    if y.ndim not in (1, 2) or len(y) != len(x) or not y.size:
        raise RlpreError(f"targets are of shape {y.shape} for {len(x)} rows of features: give one for each")
    if len(y) < 2:
        raise RlpreError("one row is given: a head needs at least two, because the bias alone takes one")
    if not np.isfinite(y).all():
        raise RlpreError("targets hold NaN or infinity: leave out the rows without a label")
    for values, what in ((y, "targets"), (x, "features")):
        if not np.ptp(values, axis=0).any():
            raise RlpreError(f"{what} are the same in all {len(y)} rows: there is nothing to learn from them")
    return y


def _checked_prior(weights: ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    """(d, k), 0 if not given."""
    prior = np.zeros(shape) if weights is None else np.asarray(weights, np.float64)
    if prior.shape != shape:
        raise RlpreError(f"weights of the {name} prior are of shape {prior.shape}: this head's are {shape}")
    if not np.isfinite(prior).all():
        raise RlpreError(f"weights of the {name} prior hold NaN or infinity: fit that head again")
    return prior.reshape(len(prior), -1)


@dataclass(frozen=True)
class PriorGain:
    """The value of one world's head as the prior of another world's head for the same label; made by `prior_gain`."""

    rows: int  # labels of the target that the heads were fitted to
    alone: Interval  # score of the source's head, which saw none of them
    without: Interval  # score of a head without a prior
    with_prior: Interval  # score of a head with the prior, shrunk as the evidence says
    gain: Interval  # `with_prior` minus `without`, by seed
    trust: Interval  # the factor by which the prior was shrunk, from 0 (no prior) to 1


def prior_gain(
    source: tuple[Features, Factor],
    target: tuple[Features, Factor],
    rows: int = 30,
    seeds: Sequence[int] = range(5),
) -> PriorGain:
    """Fits heads to few labels of a target, with and without a prior: the head fitted to all labels of a source.

    Inputs that occur in both worlds are kept, so the prior has seen their labels. Scores are those of `Factor.score`.

    Args:
        source: features (n, d) of one encoder and their label, as from `rlpre.evaluation.probes.labelled_features`.
        target: the same for other frames and the same label.
        rows: labels of the target to learn from.
        seeds: each draws these labels and the test inputs, a fifth of the target. Intervals are over these draws.

    Raises:
        RlpreError: if the target has fewer than ``rows`` labels to learn from, or all labels of a draw are equal.
    """
    (x, asked), (source_x, known) = target, source
    classes = np.union1d(known.classes, asked.classes)

    def columns(factor: Factor) -> Floats:
        """Targets (n, k): one column per class, or the quantity."""
        values = factor.values[:, None]
        return np.asarray(values if factor.quantity else values == classes, np.float64)

    alone, found = PriorHead.fit(source_x, columns(known)), []
    for seed in seeds:
        train, test = asked.folds(seed)[0]
        if rows > len(train):
            raise RlpreError(f"{rows} labels {asked.name!r} are asked for, {len(train)} are there: collect more frames")
        drawn = np.random.default_rng(seed).permutation(train)[:rows]
        y = columns(asked)[drawn]
        heads = alone, PriorHead.fit(x[drawn], y), (tied := PriorHead.fit(x[drawn], y, pretrained=alone.weights))
        answers = [head.predict(x[test])[0] for head in heads]
        values = [mean[:, 0] if asked.quantity else classes[mean.argmax(axis=1)] for mean in answers]
        scores = [asked.score(each, test) for each in values]
        found.append([*scores, scores[2] - scores[1], tied.strengths[1] / sum(tied.strengths)])
    return PriorGain(rows, *(mean_interval(column) for column in np.array(found).T))
