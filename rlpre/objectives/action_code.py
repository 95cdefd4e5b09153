"""Actions as vectors, whatever their space."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.frames import FrameStore

SMALLEST_STD = 1e-6  # an action that never varies is not divided by 0


class ActionCode(nn.Module):
    """Codes (..., size) float32 of actions: one-hot for ``Discrete``, standardised over the store for ``Box``.

    Attributes:
        continuous: whether the store's actions are vectors.
        size: how many numbers a vector has, or how many actions there are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, frames: FrameStore) -> None:
        super().__init__()
        self.continuous = isinstance(frames.action_space, spaces.Box)
        if self.continuous:
            taken = frames.column("action")[frames.acted].reshape(frames.acted.sum(), -1).astype(np.float32)
            self.register_buffer("mean", torch.from_numpy(taken.mean(0)))
            self.register_buffer("std", torch.from_numpy(taken.std(0)).clamp_min(SMALLEST_STD))
        self.size = self.mean.numel() if self.continuous else frames.num_actions

    def forward(self, actions: Tensor) -> Tensor:
        """Encodes actions (...) int64 or (..., dims) float32; what stands beyond a gap gets the code of some action."""
        if self.continuous:
            return (actions - self.mean) / self.std
        return F.one_hot(actions.clamp_min(0), self.size).float()
