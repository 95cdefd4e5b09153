"""Pictures of what an encoder sees."""

from typing import cast

from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

QUERIES, NEIGHBOURS = 8, 6


def neighbours(features: Tensor, frames: Tensor) -> Tensor:
    """A grid (3, H, W) in [0, 1]: one row per query, the frame first, then its nearest by cosine similarity.

    Args:
        features: (n, dim), n > 6.
        frames: the frames they were computed from, (n, C, H, W) uint8 with 1 or 3 channels.
    """
    unit = F.normalize(features, dim=1)
    nearest = (unit[:QUERIES] @ unit.T).topk(NEIGHBOURS + 1, dim=1).indices
    return cast(Tensor, make_grid(frames[nearest.flatten()].float() / 255, nrow=NEIGHBOURS + 1))
