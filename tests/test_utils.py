"""Image grids; the other helpers are tested by those who use them."""

import torch

from rlpre.utils import nearest_grid


def test_nearest_frames_come_first() -> None:
    angles = torch.arange(8) * 0.1
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.rand(8, 1).add(1)  # lengths do not matter
    frames = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 1, 1)
    first = (nearest_grid(features, frames)[0, 2, 2::3] * 255).round().int().tolist()
    assert first == [0, 1, 2, 3, 4, 5, 6]
