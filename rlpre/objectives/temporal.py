"""Temporal: a frame attracts the frame a few steps later, frames of other moments repel.

[0] Stooke et al. 2021, "Decoupling Representation Learning from Reinforcement Learning" (ATC).
[1] Anand et al. 2019, "Unsupervised State Representation Learning in Atari" (ST-DIM).
"""

from torch import Tensor

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import PROJECTION, Objective, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.losses import info_nce


class Temporal(Objective):
    """InfoNCE from o_t to o_{t+j}: a projector for both, a residual predictor for o_t; its metrics are `info_nce`'s."""

    needs = "pairs"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)
        self.predictor = head(PROJECTION, encoder.num_features, PROJECTION)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        now, later = self.projector(views.anchor), self.projector(views.later)
        return info_nce(now + self.predictor(now), later, views.batch.anchor_id, views.batch.later_id)
