"""Pictures of what an encoder sees."""

from typing import cast

from torch import Tensor
from torch.nn import functional as F

QUERIES, NEIGHBOURS = 8, 6


def grid(frames: Tensor, columns: int) -> Tensor:
    """Lays frames (n, C, H, W) uint8 out row by row with thin borders: (3, height, width) in [0, 1]; C is 1 or 3."""
    from torchvision.utils import make_grid  # here, because it takes longer to import than to use

    return cast(Tensor, make_grid(frames.float() / 255, nrow=columns))


def neighbours(features: Tensor, frames: Tensor) -> Tensor:
    """A grid (3, height, width) in [0, 1]: one row per query, the frame first, then its nearest by cosine similarity.

    Args:
        features: (n, dim), of different frames.
        frames: the frames they were computed from, (n, C, H, W) uint8 with 1 or 3 channels.
    """
    unit = F.normalize(features, dim=1)
    columns = min(NEIGHBOURS + 1, len(unit))
    nearest = (unit[:QUERIES] @ unit.T).topk(columns, dim=1).indices
    return grid(frames[nearest.flatten()], columns)
