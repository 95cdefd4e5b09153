"""Reading the symbols of a grid world's cells from features: type, colour and flags of each cell."""

from abc import abstractmethod
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.objectives.base import SequenceObjective
from rlpre.objectives.batches import UNSEEN, WindowBatch, WindowViews
from rlpre.utils import image_grid

CLASSES = (16, 8, 64)  # of type, colour and flags: enough for every grid-world code
LOGITS = sum(CLASSES)
BACKGROUND = 4  # types below: unseen, empty, wall, floor


class SymbolObjective(SequenceObjective):
    """An objective on windows that predicts the symbols of every cell of a frame.

    Attributes:
        cells: of a frame.

    Raises:
        RlpreError: if the frames are plain pixels.
    """

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells = count_cells(frames, type(self).__name__.lower(), ": pretrain with cpc, which needs none")

    @abstractmethod
    def fill(self, views: WindowViews, step: int) -> Tensor:
        """Logits (batch, cells, LOGITS) of the frames at ``step``, given all that the model may see except them."""

    def picture(self, encoder: SequenceEncoder, batch: WindowBatch) -> Tensor | None:
        """Three rows from the middle of windows: the frame before, the frame to predict, the model's prediction."""
        assert batch.codes is not None
        step, rows = batch.rows.shape[1] // 2, np.maximum(batch.rows[:8], 0)
        logits = self.fill(batch.views(encoder), step)[:8].view(-1, *batch.codes.shape[2:4], LOGITS)
        before, now = batch.frames(rows[:, step - 1]).cpu(), batch.frames(rows[:, step]).cpu()
        return image_grid(torch.cat([before, now, most_likely(batch.store, logits)]), len(rows))


def count_cells(frames: FrameStore, objective: str, advice: str = "") -> int:
    """How many cells a frame has.

    Raises:
        RlpreError: if the store holds pixels.
    """
    if frames.atlas is None:
        raise RlpreError(f"objective {objective!r} reads symbols, but {frames.path} holds plain pixels{advice}")
    return int(frames.codes([0])[0, ..., 0].size)


def symbol_loss(logits: Tensor, symbols: Tensor, reduction: Literal["none", "mean"] = "none") -> tuple[Tensor, Tensor]:
    """Cross-entropy of predicted symbols.

    Args:
        logits: (..., LOGITS), of type, colour and flags.
        symbols: (..., 3) int64.
        reduction: "none", or "mean" over the cells.

    Returns:
        Negative log-likelihood in nats, the sum over the three symbols, (...) or scalar, and whether all three have
        the largest logit, (...) bool.
    """
    loss = torch.zeros((), device=symbols.device)
    right = torch.ones_like(symbols[..., 0], dtype=torch.bool)
    for channel, part in enumerate(_split(logits)):
        target = symbols[..., channel]
        loss = loss + F.cross_entropy(part.flatten(0, -2), target.flatten(), reduction=reduction)
        right &= part.argmax(-1) == target
    return loss if reduction == "mean" else loss.view_as(right), right


def _split(logits: Tensor) -> tuple[Tensor, ...]:
    return cast(tuple[Tensor, ...], logits.split(CLASSES, dim=-1))  # type: ignore[no-untyped-call]


def most_likely(frames: FrameStore, logits: Tensor) -> Tensor:
    """The most likely frames (n, C, H, W) uint8, given logits (n, rows, columns, LOGITS), on the CPU.

    A cell with three symbols that are no tile of the store is drawn as unseen.
    """
    assert frames.atlas is not None
    codes = np.stack([part.argmax(-1).cpu().numpy() for part in _split(logits)], axis=-1)
    index = frames.atlas.index
    codes[(codes >= index.shape).any(-1)] = UNSEEN
    codes[index[tuple(np.moveaxis(codes, -1, 0))] < 0] = UNSEEN
    return frames.decode(torch.from_numpy(codes.astype(np.uint8)))


def foreground(symbols: Tensor) -> Tensor:
    """Which cells (...) contain an object, bool, given symbols (..., 3)."""
    return symbols[..., 0] >= BACKGROUND


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values at which ``where`` is True; 0 if it is True nowhere."""
    return (values * where).sum() / where.sum().clamp_min(1)


def balanced(losses: Tensor, objects: Tensor) -> Tensor:
    """Mean of two means: over the cells with an object, and over all others.

    About 3 % of the cells in MiniGrid's views contain an object. A plain mean is small as soon as walls and floor are
    right, and the features then say little about doors and keys.
    """
    return (mean_where(losses, objects) + mean_where(losses, ~objects)) / 2


judge, imagined = symbol_loss, most_likely  # ALIAS
