"""Claim 14: few labels and two priors are best weighed as (n theta + lambda w_par + mu w_pre) / (n + lambda + mu).

The formula is exact only if the rows have X'X = n I. On real features the matrix form weighs each direction by its own
data; the scalar form trusts the least-squares head even where there is none.
"""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, judge
from rlpre.evaluation.prior import PriorHead

ROWS, DIM, NOISE, AWAY = 40, 32, 0.5, 0.3  # of a problem; AWAY is the distance of the priors from the truth, a weight
STRENGTHS = 8.0, 4.0  # lambda and mu


def measure(directory: Path, seeds: int, anisotropy: float = 2.0) -> Verdict:
    """The gain of the matrix form over the scalar one, in error of prediction; without ``anisotropy`` there is none."""
    exact = max(abs(np.subtract(*errors(seed, 0.0))) for seed in range(seeds))
    matrix, scalar = zip(*(errors(seed, anisotropy) for seed in range(seeds)), strict=True)
    measured = (
        f"on isotropic rows the formula and `PriorHead` agree to {exact:.0e}; on anisotropic ones the matrix form "
        "lowers the error of prediction (log10) by the figure"
    )
    return judge(-np.log10(matrix), -np.log10(scalar), 0.1, measured, "scalar form, -log10 error")


def errors(seed: int, anisotropy: float) -> tuple[float, float]:
    """Squared errors of prediction of the matrix form and of the scalar form, on one problem."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(DIM)
    parent, pretrained = (truth + AWAY * rng.standard_normal(DIM) for _ in range(2))
    centred = rng.standard_normal((ROWS, DIM))
    white = np.linalg.qr(centred - centred.mean(0))[0] * ROWS**0.5  # X'X = n I, and mean 0
    x = white * np.logspace(0, -anisotropy, DIM)
    y = x @ truth + NOISE * rng.standard_normal(ROWS)
    y -= y.mean()
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    scalar = (ROWS * theta + STRENGTHS[0] * parent + STRENGTHS[1] * pretrained) / (ROWS + sum(STRENGTHS))
    head = PriorHead.fit(x, y, parent, pretrained, STRENGTHS)
    test = rng.standard_normal((1000, DIM)) @ np.linalg.cholesky(x.T @ x / ROWS).T
    matrix, scalar = (float(np.square(test @ (weights - truth)).mean()) for weights in (head.weights, scalar))
    return matrix, scalar


CLAIM = Claim(
    14,
    "Few labels and two priors combine as (n theta + lambda w_par + mu w_pre) / (n + lambda + mu).",
    measure,
    "the same formula with scalar weights, on rows whose directions differ in scale",
)
