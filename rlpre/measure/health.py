"""Is a representation healthy? Alignment, uniformity and effective rank, from features alone.

[0] Wang and Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity".
[1] Garrido et al. 2023, "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations".
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
