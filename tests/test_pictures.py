"""Pictures for TensorBoard."""

import pytest
import torch

from rlpre.report.pictures import GAP, grid, neighbours


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_lays_frames_out_row_by_row(channels: int) -> None:
    frames = torch.randint(1, 256, (6, channels, 5, 4), dtype=torch.uint8)
    picture = grid(frames, 3).clone()
    assert picture.shape == (3, 2 * 5 + GAP, 3 * 4 + 2 * GAP)
    for number, frame in enumerate(frames):
        top, left = number // 3 * (5 + GAP), number % 3 * (4 + GAP)
        assert torch.equal(picture[:, top : top + 5, left : left + 4], (frame / 255).expand(3, -1, -1))
        picture[:, top : top + 5, left : left + 4] = 0
    assert not picture.any()


def test_neighbours_come_nearest_first() -> None:
    angles = torch.arange(8) * 0.1
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.rand(8, 1).add(1)  # lengths do not matter
    frames = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 1, 1)
    first = (neighbours(features, frames)[0, 0, :: 1 + GAP] * 255).round().int().tolist()
    assert first == [0, 1, 2, 3, 4, 5, 6]
