"""What several objectives are made of: InfoNCE, random shifts, and vectors for actions.

[0] van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (InfoNCE).
[1] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
[2] Kostrikov et al. 2020, "Image Augmentation Is All You Need: Regularizing Deep RL from Pixels" (DrQ).
"""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore

SMALLEST_STD = 1e-6  # an action that never varies is not divided by 0


def info_nce(
    query: Tensor, key: Tensor, query_id: Tensor, key_id: Tensor, temperature: float = 0.1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of finding each query's own key among the keys of the batch [0, 1].

    A key that shows the same frame as the query or as the query's own key is not used as a negative: in a small world
    the same frame occurs twice in 21 to 61 % of batches, and repelling it would be noise.

    Args:
        query: (batch, dim), any scale; cosine similarity is used.
        key: (batch, dim); row i is the positive of query i.
        query_id: (batch,) int64, equal for identical frames.
        key_id: (batch,) int64, in the same numbering.
        temperature: divides the similarities.

    Returns:
        The mean loss in nats, a scalar, and two metrics: "accuracy", the share of queries whose own key is the most
        similar, and "chance_loss", the loss of an encoder that gives all frames the same features.
    """
    ignored = (key_id[None] == key_id[:, None]) | (key_id[None] == query_id[:, None])
    ignored.fill_diagonal_(False)
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    logits = logits.float().masked_fill(ignored, -torch.inf)
    target = torch.arange(len(query), device=query.device)
    chance = (~ignored).sum(1).float().log().mean()
    metrics = {"accuracy": (logits.argmax(1) == target).float().mean(), "chance_loss": chance}
    return F.cross_entropy(logits, target), metrics


def random_shift(frames: Tensor, pad: int = 3) -> Tensor:
    """Shifts each frame by whole pixels drawn from [-pad, pad] on both axes; edge pixels are repeated [2].

    It is the only augmentation: in a grid world colours name goals, and left and right are actions.

    Args:
        frames: (batch, C, H, W), any dtype, any device.
        pad: largest shift in pixels; the default is less than half a tile of 8 pixels, so that no object is lost.
    """
    batch, channels, height, width = frames.shape
    dy, dx = torch.randint(-pad, pad + 1, (2, batch, 1), device=frames.device)
    rows = (torch.arange(height, device=frames.device) + dy).clamp(0, height - 1)
    columns = (torch.arange(width, device=frames.device) + dx).clamp(0, width - 1)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    return frames.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(frames)


def unchanged(frames: Tensor) -> Tensor:
    """The frames themselves."""
    return frames


AUGMENTATIONS = {"shift": random_shift, "none": unchanged}


class ActionCode(nn.Module):
    """Turns actions into vectors (..., size) float32: one-hot for ``Discrete``, standardised by the store for ``Box``.

    ``size`` is the number of actions or the length of a vector; ``continuous`` says which.
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
        """Encodes actions (...) int64 or (..., dims) float32; the codes of padding (-1 or 0) must not be used."""
        if self.continuous:
            return (actions - self.mean) / self.std
        return F.one_hot(actions.clamp_min(0), self.size).float()
