"""How the weights of our own architectures start."""

from torch import nn


def orthogonal(stages: list[nn.Module]) -> list[nn.Module]:
    """Starts convolutions and linear layers orthogonal with gain sqrt(2) and zero bias, as SB3 starts its extractors.

    A scratch agent inside and outside SB3 then starts from the same distribution.
    """
    for stage in stages:
        stage.apply(_orthogonal)
    return stages


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
