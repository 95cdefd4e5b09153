"""A Bayesian linear head on frozen features that is pulled to what was known before, and whether that helps.

Targets are ``y = x w + b`` and noise of variance t² [0]. Two heads are known already: of a parent task, ``w_par``,
trusted with strength λ, and of pretraining, ``w_pre``, trusted with strength μ. Nothing is known of the bias b, so that
X and y are centred, and the best estimate is

    (X'X + (λ + μ) I) w = X'y + λ w_par + μ w_pre

A strength is t² over the variance of the prior: it counts like so many rows of features of unit variance. Where X'X is
n I this is the mean ``(n θ + λ w_par + μ w_pre) / (n + λ + μ)`` of the least-squares head θ and the priors. On real
features, which vary far more in some directions than in others, that mean trusts θ as much where the data says nothing
as where it says all: its weights are worse than the priors' alone, its predictions worse than those of θ.

**Strengths** are those of the highest evidence, ``p(y | X, λ, μ)`` with the noise that makes it highest [1]. A prior
that is not given is 0, the plain ridge's, so that the evidence of a single prior also says how far to shrink it. With
fewer rows than dimensions only the unevenness of the features tells noise from distance, and the evidence may take the
targets for free of noise.

**The gate.** With a prior at squared distance δ² from the truth, held by λ, d weights are better than the least-squares
ones if and only if ``δ² < t² d (2 / λ + 1 / n)``; best is λ* = t² d / δ², whatever n is. That is for X'X = n I. In
general the prediction errors over the rows seen compare in the same way, if δ² is spread evenly over the weights, where
n is a mean of the eigenvalues of X'X, each with the weight (eigenvalue + λ)^-2. The distance is not known: the evidence
estimates it, as the variance t² / λ* of d weights around the prior at the strength of highest evidence.

References:
    [0] Bishop 2006, "Pattern Recognition and Machine Learning", sections 3.3 to 3.5.
    [1] MacKay 1992, "Bayesian Interpolation".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from rlpre.errors import RlpreError
from rlpre.measure.probe import finite
from rlpre.measure.stats import Floats

GRID = np.logspace(-8, 6, 281)  # strengths tried, in units of the largest eigenvalue of X'X: twelve per cent apart
Strengths = tuple[float, float]  # λ of the parent's head, μ of the pretrained one


@dataclass(frozen=True)
class Gate:
    """Does a prior help, held as strongly as it is? See the top of this file.

    Attributes:
        distance: δ², squared, from the prior to the true weights.
        noise: t², the variance of a target around its prediction.
        weights: d, of all targets together.
        strength: λ, above 0; of both priors together.
        rows: n, by how much the data speaks in each direction.
    """

    distance: float
    noise: float
    weights: int
    strength: float
    rows: float

    @property
    def limit(self) -> float:
        """The squared distance up to which the prior helps."""
        return self.noise * self.weights * (2 / self.strength + 1 / self.rows)

    @property
    def best(self) -> float:
        """λ*, the strength at which a prior so far away helps most."""
        return self.noise * self.weights / self.distance if self.distance else inf

    @property
    def helps(self) -> bool:
        """Whether predictions are better than those of least squares."""
        return self.distance < self.limit

    def __str__(self) -> str:
        """One sentence."""
        verdict, side = ("helps", "below") if self.helps else ("hurts", "not below")
        return (
            f"the prior {verdict} at strength {self.strength:.3g}: its squared distance {self.distance:.3g} is {side} "
            f"{self.noise:.3g} x {self.weights} x (2 / {self.strength:.3g} + 1 / {self.rows:.3g}) = {self.limit:.3g}; "
            f"the best strength is {self.best:.3g}"
        )


@dataclass(frozen=True, eq=False)
class PriorHead:
    """A fitted head; made by `fit`.

    Attributes:
        weights: (d,), or (d, k) for k targets; ``torch.nn.Linear`` holds their transpose.
        bias: () or (k,).
        strengths: λ and μ.
        noise: t², in the target's unit squared, one for all targets.
        evidence: log marginal likelihood of the targets' deviations from their means.
        gate: whether the priors help, at these strengths. Those chosen by evidence pass it, being the best ones.
    """

    weights: Floats
    bias: Floats
    strengths: Strengths
    noise: float
    evidence: float
    gate: Gate
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
            pretrained: weights of a head for what the encoder was pretrained on, such as the action taken for
                ``inverse``; None: 0.
            strengths: λ and μ, at least 0 and not both 0; None: those of the highest evidence.

        Raises:
            RlpreError: if shapes do not fit together, a number is not finite, all features or all targets are constant,
                or strengths are out of range.
        """
        x = _table(features)
        y = _answers(targets, x)
        rows = _Rows(x, y.reshape(len(y), -1))
        shape = (x.shape[1], *y.shape[1:])
        before, base = _prior(parent, shape, "parent"), _prior(pretrained, shape, "pretrained")
        chosen = rows.best(before, base) if strengths is None else _strengths(strengths)
        strength = sum(chosen)
        prior = (chosen[0] * before + chosen[1] * base) / strength
        weights = rows.solve(prior, strength).reshape(shape)
        evidence, noise = map(float, rows.evidence(rows.missed(prior), np.asarray(strength)))
        bias = np.asarray(y.mean(axis=0) - rows.centre @ weights)
        return PriorHead(weights, bias, chosen, noise, evidence, rows.gate(prior, strength), rows)

    def predict(self, features: ArrayLike) -> tuple[Floats, Floats]:
        """Answers new rows.

        Args:
            features: (m, d).

        Returns:
            The mean, (m,) or (m, k), and the variance (m,), the same for every target: of the noise, which counts as
            known, and of what the data leave open about weights and bias.

        Raises:
            RlpreError: if features are of another width, or not finite.
        """
        x = _table(features)
        if x.shape[1] != len(self.weights):
            raise RlpreError(f"features have {x.shape[1]} dimensions, the head {len(self.weights)}: use one encoder")
        return x @ self.weights + self.bias, self.noise * self._rows.leverage(x, sum(self.strengths))


class _Rows:
    """Rows in the coordinates of their singular vectors, where to try a strength costs no other decomposition."""

    def __init__(self, features: Floats, targets: Floats) -> None:
        self.centre = features.mean(axis=0)
        left, singular, right = np.linalg.svd(features - self.centre, full_matrices=False)
        kept = singular > singular[0] * max(features.shape) * np.finfo(np.float64).eps
        self.singular, self.directions = singular[kept], right[kept].T
        self.eigenvalues = self.singular**2
        y = targets - targets.mean(axis=0)
        self.told = left[:, kept].T @ y
        rounding = (np.finfo(np.float64).eps * np.linalg.norm(y)) ** 2
        self.untold = float(np.square(y - left[:, kept] @ self.told).sum() + rounding)  # what no weights explain
        self.count, self.targets = targets.shape

    def missed(self, weights: Floats) -> Floats:
        """What ``weights`` (d, k) leave of the targets: (directions, k)."""
        return np.asarray(self.told - self.singular[:, None] * (self.directions.T @ weights))

    def solve(self, prior: Floats, strength: float) -> Floats:
        """The head (d, k) that a prior at ``prior`` (d, k) gives."""
        gain = self.singular / (self.eigenvalues + strength)
        return np.asarray(prior + self.directions @ (gain[:, None] * self.missed(prior)))

    def evidence(self, missed: Floats, strength: Floats) -> tuple[Floats, Floats]:
        """The log evidence of priors that miss so much, and the noise that makes it highest.

        Args:
            missed: (..., directions, k).
            strength: (...).

        Returns:
            (...) twice.
        """
        freedom = (self.count - 1) * self.targets  # the bias takes one
        ratio = self.eigenvalues / strength[..., None]
        noise = ((np.square(missed).sum(axis=-1) / (1 + ratio)).sum(axis=-1) + self.untold) / freedom
        volume = self.targets * np.log1p(ratio).sum(axis=-1)
        return -0.5 * (freedom * (np.log(2 * np.pi * noise) + 1) + volume), noise

    def best(self, parent: Floats, pretrained: Floats) -> Strengths:
        """λ and μ of the highest evidence; for each total strength the parent's share has a closed form."""
        missed = self.missed(pretrained)
        step = missed - self.missed(parent)
        strength = GRID * self.eigenvalues[0]
        trust = 1 / (strength[:, None] + self.eigenvalues)
        along, size = trust @ (missed * step).sum(axis=1), trust @ np.square(step).sum(axis=1)
        share = np.clip(np.divide(along, size, out=np.zeros_like(size), where=size > 0), 0, 1)
        at = self.evidence(missed - share[:, None, None] * step, strength)[0].argmax()
        return float(share[at] * strength[at]), float((1 - share[at]) * strength[at])

    def gate(self, prior: Floats, strength: float) -> Gate:
        """See the top of this file."""
        best = sum(self.best(prior, prior))
        noise = float(self.evidence(self.missed(prior), np.asarray(best))[1])
        trust = (self.eigenvalues + strength) ** -2.0
        rows = float(trust @ self.eigenvalues / trust.sum())
        return Gate(prior.size * noise / best, noise, prior.size, strength, rows)

    def leverage(self, features: Floats, strength: float) -> Floats:
        """Variances (m,) of predictions, in units of the noise."""
        x = features - self.centre
        inside = np.square(x @ self.directions)
        outside = np.maximum(np.square(x).sum(axis=1) - inside.sum(axis=1), 0.0)
        return np.asarray(1 + 1 / self.count + inside @ (1 / (self.eigenvalues + strength)) + outside / strength)


def _table(features: ArrayLike) -> Floats:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.size:
        raise RlpreError(f"features are of shape {x.shape}: give (rows, dimensions)")
    finite(x, "features")
    return x


def _answers(targets: ArrayLike, features: Floats) -> Floats:
    """(n,) or (n, k), from which something can be learned."""
    y = np.asarray(targets, np.float64)
    if y.ndim not in (1, 2) or len(y) != len(features) or not y.size:
        raise RlpreError(f"targets are of shape {y.shape} for {len(features)} rows of features: give one for each")
    if len(y) < 2:
        raise RlpreError("a head needs two rows at least, one is there: its bias alone takes one")
    if not np.isfinite(y).all():
        raise RlpreError("targets hold NaN or infinity: leave out the rows without a label")
    for values, what in ((y, "targets"), (features, "features")):
        if not np.ptp(values, axis=0).any():
            raise RlpreError(f"{what} are the same in all {len(y)} rows: there is nothing to learn from them")
    return y


def _prior(weights: ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    """(d, k), 0 if not given."""
    prior = np.zeros(shape) if weights is None else np.asarray(weights, np.float64)
    if prior.shape != shape:
        raise RlpreError(f"weights of the {name} prior are of shape {prior.shape}: this head's are {shape}")
    if not np.isfinite(prior).all():
        raise RlpreError(f"weights of the {name} prior hold NaN or infinity: fit that head again")
    return prior.reshape(len(prior), -1)


def _strengths(strengths: Strengths) -> Strengths:
    parent, pretrained = map(float, strengths)
    if not (min(parent, pretrained) >= 0 and 0 < parent + pretrained < inf):
        raise RlpreError(f"strengths are {parent:g} and {pretrained:g}: give numbers from 0 on that are not both 0")
    return parent, pretrained
