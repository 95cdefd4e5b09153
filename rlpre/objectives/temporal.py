"""Temporal: a frame and one a few steps later attract each other, frames of other moments repel.

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
    """InfoNCE from o_t to o_{t+j}, with a projector for both and a residual predictor for o_t [0, 1]."""

    needs = "pairs"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)
        self.predictor = head(PROJECTION, encoder.num_features, PROJECTION)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        now, later = self.projector(views.anchor), self.projector(views.later)
        return info_nce(now + self.predictor(now), later, views.batch.anchor_id, views.batch.later_id)
