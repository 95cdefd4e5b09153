"""Contrastive and temporal: two views of a frame, or two frames a few steps apart, attract each other; others repel.

[0] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
[1] Laskin et al. 2020, "CURL: Contrastive Unsupervised Representations for Reinforcement Learning".
[2] Stooke et al. 2021, "Decoupling Representation Learning from Reinforcement Learning" (ATC).
[3] Anand et al. 2019, "Unsupervised State Representation Learning in Atari" (ST-DIM).
"""

from torch import Tensor

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import PROJECTION, Objective, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.losses import info_nce


class Contrastive(Objective):
    """Symmetric InfoNCE between two random shifts of a frame, behind a projector [0, 1]."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        first, second, ids = self.projector(views.anchor), self.projector(views.second_view), views.batch.anchor_id
        forward, metrics = info_nce(first, second, ids, ids)
        backward, _ = info_nce(second, first, ids, ids)
        return (forward + backward) / 2, metrics


class Temporal(Objective):
    """InfoNCE from o_t to o_{t+j}, with a projector for both and a residual predictor for o_t [2, 3]."""

    needs = "pairs"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)
        self.predictor = head(PROJECTION, encoder.num_features, PROJECTION)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        now, later = self.projector(views.anchor), self.projector(views.later)
        return info_nce(now + self.predictor(now), later, views.batch.anchor_id, views.batch.later_id)
