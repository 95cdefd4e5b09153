"""Inverse: which action was taken at the start of the way from o_t to o_{t+j}?

[0] Pathak et al. 2017, "Curiosity-driven Exploration by Self-supervised Prediction" (one step).
[1] Lamb et al. 2022, "Guaranteed Discovery of Control-Endogenous Latent States with Multi-Step Inverse Models".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.losses import ActionCode

MAX_GAP = 16  # longer gaps share one embedding


class Inverse(Objective):
    """Predicts a_t [0, 1] from the features of both frames and the number of steps between them.

    Discrete actions: cross-entropy and "accuracy". Vectors: mean squared error, standardised over the store, and "r2"
    within the batch.
    """

    needs = "actions"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.code = ActionCode(frames)
        self.gap = nn.Embedding(MAX_GAP, encoder.num_features)
        self.head = head(3 * encoder.num_features, 2 * encoder.num_features, self.code.size)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        gap, action = views.batch.gap.clamp_max(MAX_GAP - 1), views.batch.actions[:, 0]
        answer = self.head(torch.cat([views.anchor, views.later, self.gap(gap)], dim=1)).float()
        if self.code.continuous:
            target = self.code(action)
            loss = F.mse_loss(answer, target)
            return loss, {"r2": 1 - loss.detach() / target.var(0, unbiased=False).mean()}
        return F.cross_entropy(answer, action), {"accuracy": (answer.argmax(1) == action).float().mean()}
