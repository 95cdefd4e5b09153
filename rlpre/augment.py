"""Augmentations that keep what a grid world means: colour names goals, left and right are actions, so only shifts.

[0] Kostrikov et al. 2020, "Image Augmentation Is All You Need: Regularizing Deep RL from Pixels" (DrQ).
[1] The authors' ``denisyarats/drq``: replicate padding, then a random crop of the original size.
"""

import torch
from torch import Tensor


def random_shift(frames: Tensor, pad: int = 3) -> Tensor:
    """Shifts each frame by its own whole number of pixels, drawn from [-pad, pad] on both axes; edges replicate.

    Args:
        frames: (batch, C, H, W), any dtype, any device.
        pad: largest shift in pixels; the default stays under half a tile of 8 pixels, so no object is lost.

    Returns:
        Shifted frames of the same shape and dtype.
    """
    batch, channels, height, width = frames.shape
    dy, dx = torch.randint(-pad, pad + 1, (2, batch, 1), device=frames.device)
    rows = (torch.arange(height, device=frames.device) + dy).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) + dx).clamp(0, width - 1)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return frames.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(frames)
