"""Pictures of what an encoder sees."""

from torch import Tensor
from torch.nn import functional as F

QUERIES, NEIGHBOURS = 8, 6
GAP = 2  # black pixels between frames


def grid(frames: Tensor, columns: int) -> Tensor:
    """Lays frames (rows * columns, C, H, W) uint8 out row by row: (3, height, width) in [0, 1]; C is 1 or 3."""
    cells = F.pad(frames.float() / 255, (0, GAP, 0, GAP))
    table = cells.reshape(-1, columns, *cells.shape[1:]).permute(2, 0, 3, 1, 4)  # (C, rows, H, columns, W)
    return table.flatten(3).flatten(1, 2)[:, :-GAP, :-GAP].expand(3, -1, -1)


def neighbours(features: Tensor, frames: Tensor) -> Tensor:
    """A grid (3, H, W) in [0, 1]: one row per query, the frame first, then its nearest by cosine similarity.

    Args:
        features: (n, dim), n > 6.
        frames: the frames they were computed from, (n, C, H, W) uint8 with 1 or 3 channels.
    """
    unit = F.normalize(features, dim=1)
    nearest = (unit[:QUERIES] @ unit.T).topk(NEIGHBOURS + 1, dim=1).indices
    return grid(frames[nearest.flatten()], NEIGHBOURS + 1)
