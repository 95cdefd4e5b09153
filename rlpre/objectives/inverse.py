"""Inverse dynamics: which action began the way from o_t to o_{t+j}?

[0] Pathak et al. 2017, "Curiosity-driven Exploration by Self-supervised Prediction" (one step).
[1] Lamb et al. 2022, "Guaranteed Discovery of Control-Endogenous Latent States with Multi-Step Inverse Models".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.encoders import Encoder
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective, Views, head

MAX_GAP = 16  # more steps between the frames than any pair sampler draws


class Inverse(Objective):
    """Cross-entropy of a_t given both frames' features and the number of steps between them."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.gap = nn.Embedding(MAX_GAP, encoder.num_features)
        self.head = head(3 * encoder.num_features, 2 * encoder.num_features, frames.num_actions)

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        logits = self.head(torch.cat([views.anchor, views.later, self.gap(views.batch.gap)], dim=1)).float()
        action = views.batch.action
        return F.cross_entropy(logits, action), {"accuracy": (logits.argmax(1) == action).float().mean()}
