"""What an encoder reads, and how values become those of its first stage."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlpre.errors import RlpreError


@dataclass(frozen=True)
class InputSpec:
    """What an encoder reads: frames ``shape`` (C, H, W) with values in [low, high].

    They are scaled to [0, 1], then to ``(x - mean) / std``; ``mean`` and ``std`` are one number, or one per channel.

    Raises:
        RlpreError: for a ``std`` that is not positive, or neither one number nor one per channel.
    """

    shape: tuple[int, int, int]
    dtype: str = "uint8"
    layout: str = "CHW"
    low: float = 0.0
    high: float = 255.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name, above in (("mean", -np.inf), ("std", 0.0)):
            values = np.asarray(getattr(self, name), dtype=float)
            if values.shape not in ((), self.shape[:1]):
                raise RlpreError(
                    f"{name} has shape {values.shape}: give one number, or {self.shape[0]}, one per channel"
                )
            if not (np.isfinite(values) & (values > above)).all():
                raise RlpreError(f"{name} is {getattr(self, name)}: it must be finite{', and positive' * (above == 0)}")
            plain = values.tolist()
            object.__setattr__(self, name, tuple(plain) if values.ndim else plain)

    def check(self, space: spaces.Space[Any]) -> None:
        """Refuses an observation space that this specification does not describe.

        Raises:
            RlpreError: naming the shape, channel order, dtype or range that differs.
        """
        if not isinstance(space, spaces.Box):
            raise RlpreError(
                f"the encoder reads a Box of frames, the environment gives {type(space).__name__}: wrap it to give one"
            )
        if space.shape != self.shape:
            channels, height, width = self.shape
            swapped = space.shape == (height, width, channels)
            raise RlpreError(
                f"the observation shape is {space.shape}, the encoder was built for {self.shape} (C, H, W): "
                + ("channels are last, wrap the environment in VecTransposeImage" if swapped else "render at its size")
            )
        if str(space.dtype) != self.dtype:
            raise RlpreError(f"observations are {space.dtype}, the encoder reads {self.dtype}: cast them in a wrapper")
        low, high = float(space.low.min()), float(space.high.max())
        if (low, high) != (self.low, self.high):
            raise RlpreError(
                f"observations range over [{low:g}, {high:g}], the encoder reads [{self.low:g}, {self.high:g}]: "
                "rescale them in a wrapper"
            )

    @property
    def space(self) -> spaces.Box:
        """The observation space that this specification describes."""
        return spaces.Box(self.low, self.high, self.shape, np.dtype(self.dtype).type)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and summand that take pixels to what the first stage reads, each of shape () or (C, 1, 1)."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64).reshape((-1, 1, 1) if isinstance(values, tuple) else ())
            for values in (self.mean, self.std)
        )
        scale = 1 / ((self.high - self.low) * std)
        return scale.float(), (-self.low * scale - mean / std).float()
