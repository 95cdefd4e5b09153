"""The built-in architectures cnn, impala and vit, and a linear map that can be put behind any network.

An architecture is called with the channels, height and width of the frames and its own arguments. It returns a module
or a list of modules, to be run in order, from frames (batch, C, H, W) to feature vectors (batch, features).

[0] Mnih et al. 2015, "Human-level control through deep reinforcement learning"; the layers are those of
    ``stable_baselines3.common.torch_layers.NatureCNN``.
[1] Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
    and the authors' ``scalable_agent/experiment.py``.
[2] Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale".
[3] Beyer, Zhai, Kolesnikov 2022, "Better plain ViT baselines for ImageNet-1k": the mean of the tokens, no class token.
[4] Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture": norm first trains without warm-up.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlpre.errors import RlpreError

Architecture = Callable[..., nn.Module | Sequence[nn.Module]]

PATCH = 8  # pixels; the tile of the grid worlds, so that one patch is one cell
PATCHES = range(4, 17)  # sides of a patch that `vit` chooses from


def cnn(channels: int, height: int, width: int, features: int = 128) -> list[nn.Module]:
    """Four stages: three convolutions [0], then the projection to ``features``; frames are at least 36 x 36.

    The projection ends in layer norm instead of a ReLU (as in DrQ): heads on frozen features need all features alive
    and on one scale.
    """
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(channels, 32, kernel_size=8, stride=4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 64, kernel_size=4, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 64, kernel_size=3, stride=1), nn.ReLU(), nn.Flatten()),
    ]
    flat = output(stages, channels, height, width).shape[1]
    return orthogonal([*stages, nn.Sequential(nn.Linear(flat, features), nn.LayerNorm(features))])


def impala(
    channels: int, height: int, width: int, features: int = 256, depths: Sequence[int] = (16, 32, 32)
) -> list[nn.Module]:
    """One stage per depth (convolution, pooling, two residual blocks) [1], then the projection to ``features``.

    The projection ends in layer norm, as in `cnn`.
    """
    stages: list[nn.Module] = []
    for before, depth in zip((channels, *depths), depths, strict=False):
        stages.append(
            nn.Sequential(
                nn.Conv2d(before, depth, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                _Residual(depth),
                _Residual(depth),
            )
        )
    flat = output(stages, channels, height, width).numel()
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(flat, features), nn.LayerNorm(features))
    return orthogonal([*stages, head])


def symbols(channels: int, height: int, width: int, count: int) -> nn.Module:
    """No pixels but a symbol: frames of one number, 0 to ``count``, become its one-hot vector of ``count`` + 1."""
    if (channels, height, width) != (1, 1, 1):
        raise RlpreError(f"frames are {channels} x {height} x {width}: symbols are frames of 1 x 1 x 1")
    return _OneHot(count)


class _OneHot(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        numbers = (x.flatten(1)[:, 0] * self.count).round().long()
        return nn.functional.one_hot(numbers, self.count + 1).to(x.dtype)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.layers(x))


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
    """A small vision transformer [2]: patches with learned positions, ``depth`` blocks, the projection to ``features``.

    Tokens have length ``dim``; blocks have ``heads`` attention heads, norm first [4] and no dropout. The projection
    takes the mean of the tokens [3] and ends in layer norm, as in `cnn`. The side of a patch is ``patch`` pixels: by
    default 8, or the divisor of both sides of the frame nearest to 8.

    Raises:
        RlpreError: if patches do not tile the frame, or ``dim`` is not a multiple of ``heads``.
    """
    if patch is None:
        fitting = [side for side in PATCHES if height % side == width % side == 0]
        patch = min(fitting, key=lambda side: abs(side - PATCH), default=PATCH)
    if patch < 1 or height % patch or width % patch:
        frames = f"frames of {height} x {width}"
        raise RlpreError(f"patches of {patch} pixels do not tile {frames}: pad or resize the frames")
    if heads < 1 or dim % heads:
        raise RlpreError(f"{heads} heads do not divide dim={dim}: choose a multiple")
    blocks = [transformer_layer(dim, heads) for _ in range(depth)]
    projection = nn.Sequential(nn.LayerNorm(dim), _Mean(), nn.Linear(dim, features), nn.LayerNorm(features))
    return orthogonal([_Patches(channels, height // patch * (width // patch), patch, dim), *blocks, projection])


class _Patches(nn.Module):
    """Frames (batch, C, H, W) to tokens (batch, patches, dim)."""

    def __init__(self, channels: int, patches: int, side: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, kernel_size=side, stride=side)
        self.positions = nn.Parameter(0.02 * torch.randn(patches, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.embed(x).flatten(2).transpose(1, 2), self.positions)


class _Mean(nn.Module):
    """The mean of the tokens: (batch, patches, dim) to (batch, dim)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer_layer(dim: int, heads: int) -> nn.TransformerEncoderLayer:
    """The transformer block of torch, norm first [4], without dropout."""
    return nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def whitened(build: Architecture) -> Architecture:
    """The architecture ``build`` with a linear map of its features as its last stage, which `rlpre.whiten` sets."""

    def build_whitened(channels: int, height: int, width: int, **arguments: Any) -> list[nn.Module]:
        stages = _stages(build(channels, height, width, **arguments))
        return [*stages, identity_map(output(stages, channels, height, width).shape[1])]

    return build_whitened


def flattened_map(build: Architecture) -> Architecture:
    """The first ``map_stage`` stages of the architecture ``build``, then ``map_size`` linear features of their output.

    As `rlpre.whiten` makes it: the last stage flattens a feature map and projects it to its principal components.
    """

    def build_map(
        channels: int, height: int, width: int, map_stage: int, map_size: int, **arguments: Any
    ) -> list[nn.Module]:
        stages = _stages(build(channels, height, width, **arguments))[:map_stage]
        flat = output(stages, channels, height, width).numel()
        return [*stages, *orthogonal([nn.Sequential(nn.Flatten(), nn.Linear(flat, map_size))])]

    return build_map


def _stages(built: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    return [built] if isinstance(built, nn.Module) else list(built)


def identity_map(features: int) -> nn.Linear:
    """A linear map that starts as the identity."""
    linear = nn.Linear(features, features)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


@torch.no_grad()
def output(stages: Iterable[nn.Module], channels: int, height: int, width: int) -> Tensor:
    """What the stages make of one black frame, in evaluation mode; they are left in training mode."""
    x = torch.zeros(1, channels, height, width)
    for stage in stages:
        x = stage.eval()(x)
        stage.train()
    return x


def orthogonal(stages: list[nn.Module]) -> list[nn.Module]:
    """Starts convolutions and linear layers orthogonal with gain sqrt(2) and zero bias, as SB3 does.

    So an agent from scratch starts from the same distribution with and without rlpre.
    """
    for module in nn.ModuleList(stages).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight, gain=2**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return stages
