"""A small vision transformer.

[0] Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale".
[1] Beyer, Zhai, Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k": the mean of the tokens serves as well as
    a class token.
[2] Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture": norm first trains without warm-up.
"""

import torch
from torch import Tensor, nn

from rlpre.encoders.initial import orthogonal
from rlpre.errors import RlpreError

CELL = 8  # pixels; a grid world's tile, so that one patch is one cell
SIDES = range(4, 17)  # patch sides to choose from


def vit(
    channels: int,
    height: int,
    width: int,
    features: int = 128,
    patch: int | None = None,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
) -> list[nn.Module]:
    """Patch embedding with learned positions, ``depth`` transformer blocks, then the projection to ``features``.

    Blocks are torch's own, norm first, without dropout. The projection ends in layer norm, as in ``cnn``.

    Args:
        channels: of the frames.
        height: of the frames, in pixels.
        width: of the frames, in pixels.
        features: length of the feature vector.
        patch: side of a patch in pixels; default 8, or the divisor of both sides of the frame nearest to it.
        dim: length of a token.
        depth: number of blocks.
        heads: of each block's attention.

    Raises:
        RlpreError: if patches do not tile the frame, or heads do not divide ``dim``.
    """
    if patch is None:
        tiling = [side for side in SIDES if height % side == width % side == 0]
        patch = min(tiling, key=lambda side: abs(side - CELL), default=CELL)
    if patch < 1 or height % patch or width % patch:
        raise RlpreError(
            f"patches of {patch} pixels do not tile frames of {height} x {width}: pad or resize the frames"
        )
    if heads < 1 or dim % heads:
        raise RlpreError(f"{heads} heads do not divide dim={dim}: choose a multiple")
    blocks = [
        nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    projection = nn.Sequential(nn.LayerNorm(dim), _Mean(), nn.Linear(dim, features), nn.LayerNorm(features))
    return orthogonal([_Patches(channels, height // patch * (width // patch), patch, dim), *blocks, projection])


class _Patches(nn.Module):
    """Frames (batch, C, H, W) to tokens (batch, patches, dim)."""

    def __init__(self, channels: int, patches: int, side: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, kernel_size=side, stride=side)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.positions  # type: ignore[no-any-return]


class _Mean(nn.Module):
    """The mean of the tokens: (batch, patches, dim) to (batch, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
