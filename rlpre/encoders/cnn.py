"""The convolutional encoder of the Nature DQN paper, at the size of a grid world.

[0] Mnih et al. 2015, "Human-level control through deep reinforcement learning".
[1] ``stable_baselines3.common.torch_layers.NatureCNN``, from which the layers are taken.
"""

import torch
from torch import nn

from rlpre.encoders.initial import orthogonal


def cnn(channels: int, height: int, width: int, features: int = 128) -> list[nn.Module]:
    """Four stages: three convolutions, then the projection to ``features``; needs frames of at least 36 x 36.

    The projection ends in layer norm, as in DrQ, not in a ReLU: heads that learn from frozen features need all of them
    alive and of one scale.
    """
    stages: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(channels, 32, kernel_size=8, stride=4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 64, kernel_size=4, stride=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 64, kernel_size=3, stride=1), nn.ReLU(), nn.Flatten()),
    ]
    with torch.no_grad():
        flat = nn.Sequential(*stages)(torch.zeros(1, channels, height, width)).shape[1]
    return orthogonal([*stages, nn.Sequential(nn.Linear(flat, features), nn.LayerNorm(features))])
