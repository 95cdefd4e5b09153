"""Any architecture or backbone with a linear map behind it, which `rlpre.whiten` sets."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Build = Callable[..., nn.Module | Sequence[nn.Module]]
PREFIX = "whitened:"  # of the names of such


class Whitened:
    """An architecture and one stage more: a linear map of its features, at first the identity.

    As a stage it is saved, frozen, trained and plugged like the others.
    """

    def __init__(self, build: Build) -> None:
        self.build = build

    def __call__(self, channels: int, height: int, width: int, **arguments: Any) -> list[nn.Module]:
        """Builds the stages; the arguments are the architecture's own."""
        built = self.build(channels, height, width, **arguments)
        stages = [built] if isinstance(built, nn.Module) else list(built)
        network = nn.Sequential(*stages).eval()
        with torch.no_grad():
            features = network(torch.zeros(1, channels, height, width)).shape[1]
        network.train()
        return [*stages, identity(features)]


def identity(features: int) -> nn.Linear:
    """A linear map that changes nothing yet."""
    turn = nn.Linear(features, features)
    nn.init.eye_(turn.weight)
    nn.init.zeros_(turn.bias)
    return turn
