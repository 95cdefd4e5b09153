"""Reading what frames show from features: the symbols of a grid world's cells (type, colour, flags), or labels."""

from abc import abstractmethod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import UNSEEN, FrameViews, WindowBatch, WindowViews
from rlpre.utils import image_grid

CLASSES = (16, 8, 64)  # of type, colour and flags: enough for every grid-world code
LOGITS = sum(CLASSES)
BACKGROUND = 4  # types below: unseen, empty, wall, floor
BINS = 8  # classes of a label; one with more values is cut into so many of about the same size


class SymbolObjective(Objective):
    """An objective on windows that predicts the symbols of all ``cells`` of a frame, in its last layer ``output``."""

    kind, needs = "sequence", "actions"
    output: nn.Module

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells = count_cells(self, frames)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, cells, LOGITS) of frames, given what the last layer reads, (n, width)."""
        return cast(Tensor, self.output(hidden)).float().view(-1, self.cells, LOGITS)

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


class Supervised(Objective):
    """What frames show, from their features: the symbols of all cells, or the label columns of a store of pixels.

    Not a pretext task, but the upper bound in a comparison. "accuracy" is the share of cells with all symbols right, or
    of known labels whose class is right. The loss of symbols is `symbol_loss`, `balanced` over the cells; that of
    labels the mean cross-entropy of the known ones. The frames are not shifted: that would move the cells out of their
    places.
    """

    edges: Tensor  # (labels, BINS - 1), see `label_edges`

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.reads_labels = frames.atlas is None and bool(frames.labels)
        self.cells = 0 if self.reads_labels else count_cells(self, frames)
        self.register_buffer("edges", label_edges(frames), persistent=False)
        if self.reads_labels and not self.edges.isfinite().any():
            raise RlpreError(f"no label of {frames.path} has two known values, so none can be learned: use contrastive")
        self.head = head(encoder.num_features, len(self.edges) * BINS if self.reads_labels else self.cells * LOGITS)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        logits = self.head(views.plain).float()
        if self.reads_labels:
            labels = views.batch.labels
            classes = (labels[..., None] >= self.edges).sum(-1)
            scores = logits.view(*classes.shape, BINS)
            loss = F.cross_entropy(scores.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
            right = scores.argmax(-1) == classes
            return mean_where(loss, labels >= 0), {"accuracy": mean_where(right.float(), labels >= 0)}
        symbols = views.batch.codes.flatten(1, 2).long()  # (batch, cells, 3)
        loss, right = symbol_loss(logits.view(len(symbols), self.cells, LOGITS), symbols)
        return balanced(loss, foreground(symbols)), {"accuracy": right.float().mean()}


def label_edges(frames: FrameStore) -> Tensor:
    """The least values of all classes but the first of every label, (labels, BINS - 1); inf if there are fewer.

    A label with more than ``BINS`` values has classes of about the same size; its least value, such as 0 for "none",
    may be a larger class of its own. Unknown values (-1) are left out.
    """
    edges = torch.full((len(frames.labels), BINS - 1), torch.inf)
    for row, name in zip(edges, frames.labels, strict=True):
        column = frames.column(name)
        starts = np.unique(known := column[column >= 0])[1:]
        if len(starts) >= BINS:
            starts = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="closest_observation"))
            if starts[0] == known.min():  # one class for the least value, the others for the rest
                rest = known[known > known.min()]
                later = np.quantile(rest, np.arange(1, BINS - 1) / (BINS - 1), method="closest_observation")
                starts = np.unique([rest.min(), *later])
        row[: len(starts)] = torch.from_numpy(starts.astype(np.float32))
    return edges


def count_cells(objective: Objective, frames: FrameStore) -> int:
    """How many cells a frame has.

    Raises:
        RlpreError: if the store holds pixels.
    """
    if frames.atlas is None:
        other = "cpc" if objective.kind == "sequence" else "contrastive"
        raise RlpreError(
            f"objective {type(objective).__name__.lower()!r} reads symbols, but {frames.path} holds plain pixels"
            f"{' without labels' if objective.kind == 'vision' else ''}: pretrain with {other}, which needs none"
        )
    return int(frames.codes([0])[0, ..., 0].size)


def symbol_loss(logits: Tensor, symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of symbols (..., 3) int64, given logits (..., LOGITS).

    Returns:
        The negative log-likelihood in nats, summed over the three symbols, (...), and whether all three have the
        largest logit, (...) bool.
    """
    loss: Any = 0
    right = torch.ones_like(symbols[..., 0], dtype=torch.bool)
    for part, target in zip(torch.split_with_sizes(logits, CLASSES, -1), symbols.unbind(-1), strict=True):
        loss = loss + F.cross_entropy(part.flatten(0, -2), target.flatten(), reduction="none").view_as(target)
        right &= part.argmax(-1) == target
    return loss, right


def most_likely(frames: FrameStore, logits: Tensor) -> Tensor:
    """The most likely frames (n, C, H, W) uint8, given logits (n, rows, columns, LOGITS), on the CPU.

    A cell with three symbols that are no tile of the store is drawn as unseen; there are no pictures behind the cells.
    """
    assert frames.atlas is not None
    codes = np.stack([part.argmax(-1).cpu() for part in torch.split_with_sizes(logits, CLASSES, -1)], axis=-1)
    index = frames.atlas.index
    codes[(codes >= index.shape).any(-1)] = UNSEEN
    codes[index[tuple(np.moveaxis(codes, -1, 0))] < 0] = UNSEEN
    return frames.atlas.plain.decode_torch(torch.from_numpy(codes.astype(np.uint8)), frames.palette)


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
