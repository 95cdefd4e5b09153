"""Is a representation healthy, or has it collapsed, and how? From features alone, against fresh weights.

[0] Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity".
[1] Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations".
[2] Chen and He 2021, "Exploring Simple Siamese Representation Learning": SD per dimension on the unit sphere.
[3] Jing et al. 2022, "Understanding Dimensional Collapse in Contrastive Self-supervised Learning".
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.measure.probe import Reader, finite
from rlpre.sampling import Indices

ROWS = 1024  # distinct inputs that are measured
TWINS = 64  # inputs that are shifted twice
FEWEST = 8  # fewer distinct inputs span too little to tell
# Seeds 0 to 2 set these; in 250 updates of nine objectives on seeds 3 to 5 the least was 0.82 and 0.29: no alarm
LOW_SPREAD = 1 / 3  # of that of fresh weights; healthy runs keep 0.6 and more, collapsed ones 0.2 and less
LOW_RANK = 0.2  # the same of the centred rank beyond 1; healthy runs keep 0.27 and more, collapsed ones 0.18 and less
FLAT = 3e-3  # a spread below is a constant whatever fresh weights give
FULL = 0.9  # of the centred rank of fresh weights: what varies has no structure

AnyEncoder = Encoder | SequenceEncoder
Cause = Literal["complete collapse", "constant and noise", "dimensional collapse"]


@dataclass(frozen=True)
class Health:
    """The health of features (n, dim) of n different inputs.

    Attributes:
        alignment: see `alignment`, of two random shifts of one input.
        uniformity: see `uniformity`.
        effective_rank: see `effective_rank`.
        centred_rank: the same of centred features: in how many directions they vary, however little.
        spread: mean over dimensions of the SD of features on the unit sphere, times sqrt(dim) [2]: 0 for a constant,
            1 if they point everywhere.
        dead: share of the dimensions with less than a hundredth of the mean SD.
        inputs: n.
        dim: length of a feature vector.
    """

    alignment: float
    uniformity: float
    effective_rank: float
    centred_rank: float
    spread: float
    dead: float
    inputs: int
    dim: int


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of positive pairs on the unit sphere [0]; (n, dim) twice; 0 is perfect, at most 4."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """Log of the mean Gaussian potential on the unit sphere [0]; (n, dim); 0 when collapsed, lower is more uniform."""
    return float(torch.pdist(F.normalize(features, dim=1).float()).square().mul(-2).exp().mean().log())


def effective_rank(features: Tensor) -> float:
    """RankMe [1]: exponential of the entropy of the singular values; (n, dim) -> 1 .. min(n, dim).

    Features are not centred: a constant with a little noise is full-ranked once centred, yet useless.
    """
    singular = torch.linalg.svdvals(features.double())
    share = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(share).sum().exp())


def health(features: Tensor, first: Tensor, second: Tensor) -> Health:
    """Measures features.

    Args:
        features: (n, dim), of different inputs, see `raw`.
        first: (m, dim), of m inputs under a random shift.
        second: (m, dim), of the same under another.

    Raises:
        RlpreError: for fewer than two inputs, or features that are not finite.
    """
    if len(features) < 2:
        raise RlpreError(f"health is measured over different inputs, there are {len(features)}: give at least 2")
    finite(features.cpu().numpy(), "the features to measure")
    unit = F.normalize(features.double(), dim=1)
    deviation = features.double().std(0)
    return Health(
        alignment=alignment(first.float(), second.float()),
        uniformity=uniformity(features),
        effective_rank=effective_rank(features),
        centred_rank=effective_rank(features.double() - features.double().mean(0)),
        spread=float(unit.std(0).mean()) * features.shape[1] ** 0.5,
        dead=float((deviation < 0.01 * deviation.mean()).double().mean()),
        inputs=len(features),
        dim=features.shape[1],
    )


def encoder_health(encoder: AnyEncoder, reader: Any, seed: int = 0) -> Health:
    """Measures an encoder's features; compare with the same of `rlpre.measure.probe.fresh`.

    Args:
        encoder: its mode is restored; its features are taken before their standardisation.
        reader: a `rlpre.objectives.FrameReader` or ``WindowReader``.
        seed: draws the inputs and the shifts.

    Raises:
        RlpreError: if the store holds fewer than two different inputs, or features are not finite.
    """
    return health(*raw(encoder, sample(encoder, reader, some_inputs(reader, seed), seed)))


def some_inputs(reader: Reader, seed: int) -> Indices:
    """At most ``ROWS`` rows with different inputs."""
    rng = np.random.default_rng(seed)
    return rng.permutation(reader.distinct(rng.permutation(len(reader.frames))))[:ROWS]


def sample(encoder: AnyEncoder, reader: Any, rows: Indices, seed: int) -> list[Tensor]:
    """Features of ``rows``, and of ``TWINS`` inputs under two random shifts, on the encoder's device."""
    was_training = encoder.training
    encoder.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        views = reader.draw(TWINS, np.random.default_rng(seed)).views(encoder)
        features = [reader.encode(encoder, rows).to(encoder.device), views.anchor.float(), views.twin.float()]
    encoder.train(was_training)
    return features


def raw(encoder: AnyEncoder, features: list[Tensor]) -> list[Tensor]:
    """The features before their standardisation, which makes a full-ranked noise of a constant with a little of it."""
    return [each * encoder.feature_std + encoder.feature_mean for each in features]


def diagnose(now: Health, control: Health) -> Cause | None:
    """Names the collapse, or None.

    Frames of a small world differ in little, so that fresh weights already give features that are nearly parallel and
    of low rank: a collapse is what falls far below them.

    Args:
        now: of features after training.
        control: of the same inputs, by the same architecture with fresh weights.

    Returns:
        "complete collapse" if all inputs get nearly the same features; "constant and noise" if what little they differ
        in has no structure, so that a centred rank looks healthy; "dimensional collapse" if they differ in few
        directions [3]; None if nothing is wrong, or for fewer than ``FEWEST`` inputs.
    """
    if min(now.inputs, control.inputs) < FEWEST:
        return None
    if now.spread < max(FLAT, LOW_SPREAD * control.spread):
        return "constant and noise" if now.centred_rank > FULL * control.centred_rank else "complete collapse"
    if now.centred_rank - 1 < LOW_RANK * (control.centred_rank - 1):
        return "dimensional collapse"
    return None
