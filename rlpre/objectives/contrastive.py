"""Contrastive: two shifted views of a frame attract each other, different frames repel.

[0] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
[1] Laskin et al. 2020, "CURL: Contrastive Unsupervised Representations for Reinforcement Learning".
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
