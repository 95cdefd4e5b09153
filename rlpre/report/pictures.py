"""Pictures of what an encoder sees."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

QUERIES, NEIGHBOURS = 8, 6


def rgb(frames: Tensor) -> Tensor:
    """Frames (n, C, H, W) to look at, (n, 3, H, W): of a stack the newest, in colour if C is a multiple of 3."""
    return frames[:, -3:] if frames.shape[1] % 3 == 0 else torch.cat([frames[:, -1:]] * 3, dim=1)


def grid(frames: Tensor, columns: int) -> Tensor:
    """Lays frames (n, C, H, W) uint8 out row by row with thin borders: (3, height, width) in [0, 1]."""
    from torchvision.utils import make_grid  # here, because it takes longer to import than to use

    return cast(Tensor, make_grid(rgb(frames).float() / 255, nrow=columns))


def neighbours(features: Tensor, frames: Tensor) -> Tensor:
    """A grid (3, height, width) in [0, 1]: one row per query, the frame first, then its nearest by cosine similarity.

    Args:
        features: (n, dim), of different frames.
        frames: the frames they were computed from, (n, C, H, W) uint8.
    """
    unit = F.normalize(features, dim=1)
    columns = min(NEIGHBOURS + 1, len(unit))
    nearest = (unit[:QUERIES] @ unit.T).topk(columns, dim=1).indices
    return grid(frames[nearest.flatten()], columns)
