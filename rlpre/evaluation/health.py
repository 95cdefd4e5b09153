"""The health of a representation: has it collapsed, and in which way? From features alone, compared with fresh weights.

References:
    [0] Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity".
    [1] Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
        Representations".
    [2] Chen and He 2021, "Exploring Simple Siamese Representation Learning": SD per dimension on the unit sphere.
    [3] Jing et al. 2022, "Understanding Dimensional Collapse in Contrastive Self-supervised Learning".
    [4] LeCun, Kanter and Solla 1991, "Second order properties of error surfaces".
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from rlpre.data.store import Indices
from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError
from rlpre.evaluation.probes import distinct_rows
from rlpre.features import covariance, finite
from rlpre.objectives.batches import AnyReader

ROWS = 1024  # most distinct inputs that are measured
SHIFTED = 64  # inputs that are measured under two random shifts
FEWEST = 8  # with fewer distinct inputs no collapse is diagnosed
# Chosen on seeds 0 to 2. In 250 updates of nine objectives on seeds 3 to 5 the smallest values were 0.82 and 0.29, so
# there was no false alarm.
LOW_SPREAD = 1 / 3  # of the spread of fresh weights; healthy runs keep 0.6 or more, collapsed ones 0.2 or less
LOW_RANK = 0.2  # of the centred rank above 1 of fresh weights; healthy runs keep 0.27 or more, collapsed 0.18 or less
FLAT = 3e-3  # a smaller spread is a constant, whatever the spread of fresh weights
FULL = 0.9  # of the centred rank of fresh weights: the remaining variation has no structure
ROUNDING = torch.finfo(torch.float32).eps  # variances below this share of the largest are rounding errors

Cause = Literal["complete collapse", "constant and noise", "dimensional collapse"]


@dataclass(frozen=True)
class Health:
    """The health of features (n, dim) of n different inputs."""

    alignment: float  # mean squared distance on the unit sphere of two random shifts of an input [0]: 0 (perfect) to 4
    uniformity: float  # log of the mean Gaussian potential on the unit sphere [0]: 0 if collapsed, lower: more uniform
    effective_rank: float  # see `effective_rank`
    centred_rank: float  # the same of centred features: the number of directions in which they vary, however little
    spread: (
        float  # mean SD per dimension on the unit sphere times sqrt(dim) [2]: 0 for a constant, 1 for all directions
    )
    dead: float  # share of the dimensions with less than a hundredth of the mean SD
    inputs: int  # n
    dim: int


@dataclass(frozen=True)
class Conditioning:
    """The condition of a linear regression on features, to which the time of gradient descent is proportional [4]."""

    number: float  # largest / smallest variance over the directions in which features vary: 1 if white, inf if constant
    dimensions: int  # number of these directions; a layer norm alone removes one


def effective_rank(features: Tensor) -> float:
    """RankMe [1]: exponential of the entropy of the singular values; (n, dim) -> 1 .. min(n, dim).

    Features are not centred: a constant with a little noise has full rank once centred, yet is useless.
    """
    singular = torch.linalg.svdvals(features.double())
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(share).sum().exp())


def conditioning(features: ArrayLike) -> Conditioning:
    """The conditioning of ``features`` (n, dim)."""
    variances = torch.linalg.eigvalsh(covariance(torch.as_tensor(features)))
    varying = variances[variances > ROUNDING * variances[-1].clamp_min(torch.finfo(torch.float32).tiny)]
    if not len(varying):
        return Conditioning(float("inf"), 0)
    return Conditioning(float(varying[-1] / varying[0]), len(varying))


def health(features: Tensor, first: Tensor, second: Tensor) -> Health:
    """Measures features (n, dim) of different inputs before standardisation.

    ``first`` and ``second`` are features (m, dim) of the same inputs under two random shifts.

    Raises:
        RlpreError: for fewer than two inputs, or features that are not finite.
    """
    if len(features) < 2:
        raise RlpreError(f"health is measured over different inputs, there are {len(features)}: give at least 2")
    finite(features.cpu().numpy(), "the features to measure")
    unit = F.normalize(features.double(), dim=1)
    pairs = F.normalize(first.float(), dim=1) - F.normalize(second.float(), dim=1)
    deviation = features.double().std(0)
    return Health(
        alignment=float(pairs.square().sum(1).mean()),
        uniformity=float(torch.pdist(F.normalize(features, dim=1).float()).square().mul(-2).exp().mean().log()),
        effective_rank=effective_rank(features),
        centred_rank=effective_rank(features.double() - features.double().mean(0)),
        spread=float(unit.std(0).mean()) * features.shape[1] ** 0.5,
        dead=float((deviation < 0.01 * deviation.mean()).double().mean()),
        inputs=len(features),
        dim=features.shape[1],
    )


def encoder_health(encoder: AnyEncoder, reader: AnyReader, seed: int = 0) -> Health:
    """Measures an encoder's features; compare with the same of `rlpre.evaluation.probes.fresh`.

    Raises:
        RlpreError: if the store holds fewer than two different inputs, or features are not finite.
    """
    return health(*unstandardised(encoder, sample_features(encoder, reader, distinct_rows(reader, ROWS, seed), seed)))


def sample_features(encoder: AnyEncoder, reader: AnyReader, rows: Indices, seed: int) -> list[Tensor]:
    """Features of ``rows``, and of `SHIFTED` inputs under two random shifts, on the encoder's device."""
    was_training = encoder.training
    encoder.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        # A reader comes with an encoder of its kind, which types cannot say of two unions.
        views = reader.draw(SHIFTED, np.random.default_rng(seed)).views(encoder)  # type: ignore[arg-type]
        plain = reader.encode(encoder, rows).to(encoder.device)  # type: ignore[arg-type]
        features = [plain, views.anchor.float(), views.second_view.float()]
    encoder.train(was_training)
    return features


def unstandardised(encoder: AnyEncoder, features: list[Tensor]) -> list[Tensor]:
    """Features before the encoder standardised them: standardised, a constant with a little noise looks healthy."""
    return [each * encoder.feature_std + encoder.feature_mean for each in features]


def collapse_cause(now: Health, control: Health) -> Cause | None:
    """Names the collapse, or None: of features after training, compared with fresh weights on the same inputs.

    Frames of a small world differ little, so features of fresh weights are already nearly parallel and of low rank. A
    collapse is therefore a large fall below the control.

    Returns:
        "complete collapse" if all inputs get nearly the same features; "constant and noise" if the little variation
        has no structure, so that a centred rank looks healthy; "dimensional collapse" if features vary in few
        directions [3]; None if they are healthy, or for fewer than ``FEWEST`` inputs.
    """
    if min(now.inputs, control.inputs) < FEWEST:
        return None
    if now.spread < max(FLAT, LOW_SPREAD * control.spread):
        return "constant and noise" if now.centred_rank > FULL * control.centred_rank else "complete collapse"
    if now.centred_rank - 1 < LOW_RANK * (control.centred_rank - 1):
        return "dimensional collapse"
    return None
