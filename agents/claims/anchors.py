"""Claim 14: few labels and two priors are best weighed as (n theta + lambda w_par + mu w_pre) / (n + lambda + mu).

The formula is exact only if the rows have X'X = n I. On other rows the matrix form weighs each direction by its own
data (`rlpre.evaluation.prior.PriorHead`); the scalar form trusts the least-squares head even where there is none.
"""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, judge
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.prior import PriorHead
from rlpre.evaluation.stats import mean_interval

ROWS, DIM, NOISE, SPREAD = 40, 32, 0.5, 2.0  # of a problem; the scales of its directions cover 10 ** SPREAD
STRENGTHS = 8.0, 4.0  # lambda and mu


def measure(directory: Path, seeds: int, away: float = 0.3) -> Verdict:
    """The gain over the best single part; ``away`` is how far the priors are from the truth, in its own SD."""
    even = [errors(seed, 0.0, away) for seed in range(seeds)]
    uneven = [errors(seed, SPREAD, away) for seed in range(seeds)]
    agree = max(abs(each["matrix"] - each["scalar"]) for each in even)
    parts = [-np.log10(min(each[name] for name in ("labels", "parent", "pretrained"))) for each in uneven]
    ours, scalar = ([-np.log10(each[name]) for each in uneven] for name in ("matrix", "scalar"))
    measured = (
        "-log10 of the error of prediction: both priors and the labels in matrix form above the best of the three "
        f"alone; the scalar form has {show_interval(mean_interval(scalar))}, and differs from the matrix form by "
        f"{agree:.0e} at most on isotropic rows"
    )
    return judge(ours, parts, 0.1, measured, "best alone")


def errors(seed: int, spread: float, away: float) -> dict[str, float]:
    """Squared errors of prediction on one problem, by estimate."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(DIM)
    parent, pretrained = (truth + away * rng.standard_normal(DIM) for _ in range(2))
    drawn = rng.standard_normal((ROWS, DIM))
    x = np.linalg.qr(drawn - drawn.mean(0))[0] * ROWS**0.5 * np.logspace(0, -spread, DIM)
    y = x @ truth + NOISE * rng.standard_normal(ROWS)
    y -= y.mean()
    theta = np.linalg.lstsq(x, y, rcond=None)[0]
    strongest, weaker = STRENGTHS
    estimates = {
        "labels": theta,
        "parent": parent,
        "pretrained": pretrained,
        "scalar": (ROWS * theta + strongest * parent + weaker * pretrained) / (ROWS + strongest + weaker),
        "matrix": PriorHead.fit(x, y, parent, pretrained, STRENGTHS).weights,
    }
    return {name: float(np.square(x @ (weights - truth)).mean()) for name, weights in estimates.items()}


CLAIM = Claim(
    14,
    "Few labels and two priors combine as (n theta + lambda w_par + mu w_pre) / (n + lambda + mu).",
    measure,
    "the labels or one prior alone, whichever is best",
)
