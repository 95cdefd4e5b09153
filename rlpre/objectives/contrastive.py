"""Contrastive: two shifted views of one frame attract, different frames repel.

[0] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
[1] Laskin et al. 2020, "CURL", which uses the same game inside reinforcement learning.
"""

from torch import Tensor

from rlpre.encoders import Encoder
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batch import Views
from rlpre.objectives.info_nce import blind_nce, info_nce

PROJECTION = 64  # SimCLR uses 128 for 2048 features; a grid world needs less


class Contrastive(Objective):
    """Symmetric InfoNCE between two random shifts, behind a projector."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = head(encoder.num_features, encoder.num_features, PROJECTION)

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        first, second, ids = self.projector(views.anchor), self.projector(views.twin), views.batch.anchor_id
        forward, hits = info_nce(first, second, ids, ids)
        backward, _ = info_nce(second, first, ids, ids)
        return (forward + backward) / 2, {"accuracy": hits, "blind": blind_nce(ids, ids)}
