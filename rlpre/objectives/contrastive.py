"""Contrastive: two shifted views of one frame attract each other, different frames repel.

[0] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
[1] Laskin et al. 2020, "CURL: Contrastive Unsupervised Representations for Reinforcement Learning".
"""

from torch import Tensor

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.losses import chance_loss, info_nce

PROJECTION = 64  # dimensions that the loss compares; SimCLR uses 128 for 2048 features


class Contrastive(Objective):
    """Symmetric InfoNCE between two random shifts of a frame, behind a projector.

    Its metrics are "accuracy", the share of views whose partner is the most similar, and `chance_loss`.
    """

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        first, second, ids = self.projector(views.anchor), self.projector(views.second_view), views.batch.anchor_id
        forward, accuracy = info_nce(first, second, ids, ids)
        backward, _ = info_nce(second, first, ids, ids)
        return (forward + backward) / 2, {"accuracy": accuracy, "chance_loss": chance_loss(ids, ids)}
