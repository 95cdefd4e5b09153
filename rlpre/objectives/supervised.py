"""Supervised: every cell's symbols from the features. Not a pretext task, but the upper bound in a comparison."""

from torch import Tensor

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.symbols import LOGITS, count_cells, symbol_loss


class Supervised(Objective):
    """Mean over the cells of the cross-entropy of their three symbols; the metric is the share of cells all right."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells = count_cells(frames, "supervised")
        self.head = head(encoder.num_features, self.cells * LOGITS)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        assert views.batch.codes is not None
        symbols = views.batch.codes.flatten(1, 2).long()  # (batch, cells, 3)
        logits = self.head(views.anchor).float().view(len(symbols), self.cells, LOGITS)
        loss, right = symbol_loss(logits, symbols, reduction="mean")
        return loss, {"accuracy": right.float().mean()}
