"""Supervised: read every cell's symbols from the features. No pretext task but the upper control of a comparison."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batch import Views

CLASSES = (16, 8, 64)  # type, colour, flags of a cell: room for every grid-world code


class Supervised(Objective):
    """Sum over the three symbols of the mean cross-entropy per cell."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        if frames.atlas is None:
            raise RlpreError(f"objective 'supervised' reads symbols, but {frames.path} holds plain pixels")
        self.cells = int(frames.codes([0])[0, ..., 0].size)
        self.head = head(encoder.num_features, self.cells * sum(CLASSES))

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        assert views.batch.codes is not None
        symbols = views.batch.codes.flatten(1, 2).long()  # (batch, cells, 3)
        logits = self.head(views.anchor).float().view(len(symbols), self.cells, -1).split(CLASSES, dim=2)
        loss = torch.zeros((), device=symbols.device)
        right = torch.ones_like(symbols[..., 0], dtype=torch.bool)
        for channel, part in enumerate(logits):
            loss = loss + F.cross_entropy(part.flatten(0, 1), symbols[..., channel].flatten())
            right &= part.argmax(2) == symbols[..., channel]
        return loss, {"accuracy": right.float().mean()}
