"""Supervised: read every cell's symbols from the features. No pretext task but the upper control of a comparison."""

from torch import Tensor

from rlpre.encoders import Encoder
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batch import Views
from rlpre.objectives.symbols import LOGITS, count_cells, judge


class Supervised(Objective):
    """Sum over the three symbols of the mean cross-entropy per cell."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells = count_cells(frames, "supervised")
        self.head = head(encoder.num_features, self.cells * LOGITS)

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        assert views.batch.codes is not None
        symbols = views.batch.codes.flatten(1, 2).long()  # (batch, cells, 3)
        logits = self.head(views.anchor).float().view(len(symbols), self.cells, LOGITS)
        loss, right = judge(logits, symbols, reduction="mean")
        return loss, {"accuracy": right.float().mean()}
