"""How unequally a linear head sees its features: the condition number of their covariance.

Gradient descent on features learns a direction at a pace proportional to their variance along it [0]: the condition
number is how many times longer the slowest direction takes than the fastest.

[0] LeCun, Kanter and Solla 1991, "Second order properties of error surfaces".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = torch.finfo(torch.float32).eps  # a share of the largest variance below this says nothing


@dataclass(frozen=True)
class Conditioning:
    """Of the covariance of features.

    Attributes:
        number: largest variance / smallest, over the directions in which the features vary at all; 1 is white.
        dimensions: how many those are, at most the features' length: a layer norm alone costs one.
    """

    number: float
    dimensions: int


def conditioning(features: Tensor) -> Conditioning:
    """The condition number of the covariance of ``features`` (n, d); one that is constant is 0 dimensions at inf."""
    variances = torch.linalg.eigvalsh(covariance(features))
    varying = variances[variances > ROUNDING * variances[-1].clamp_min(torch.finfo(torch.float32).tiny)]
    if not len(varying):
        return Conditioning(float("inf"), 0)
    return Conditioning(float(varying[-1] / varying[0]), len(varying))


def covariance(features: Tensor) -> Tensor:
    """(d, d) float64, of features (n, d) around their mean."""
    centred = features.double() - features.double().mean(0)
    return centred.T @ centred / len(centred)
