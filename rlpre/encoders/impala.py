"""The residual encoder of IMPALA.

[0] Espeholt et al. 2018, "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures".
[1] The authors' ``scalable_agent/experiment.py``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlpre.encoders.initial import orthogonal


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
        return x + self.layers(x)  # type: ignore[no-any-return]


def impala(
    channels: int, height: int, width: int, features: int = 256, depths: Sequence[int] = (16, 32, 32)
) -> list[nn.Module]:
    """One stage per depth (convolution, pooling, two residual blocks), then the projection to ``features``.

    The projection ends in layer norm, as in ``cnn``.
    """
    stages: list[nn.Module] = []
    for into, depth in zip((channels, *depths), depths, strict=False):
        stages.append(
            nn.Sequential(
                nn.Conv2d(into, depth, kernel_size=3, padding=1),
                nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
                _Residual(depth),
                _Residual(depth),
            )
        )
    with torch.no_grad():
        flat = nn.Sequential(*stages)(torch.zeros(1, channels, height, width)).flatten(1).shape[1]
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(flat, features), nn.LayerNorm(features))
    return orthogonal([*stages, head])
