"""Masked: what is in the cells that were hidden, given what is around them, before and after?

[0] Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
[1] Joshi et al. 2020, "SpanBERT: Improving Pre-training by Representing and Predicting Spans": blocks, not steps.
[2] He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners": what is near says nearly all, so hide much.

What is hidden is unseen before the frozen vision encoder looks: neither its features nor any other frame's show it.
"""

import torch
from torch import Tensor

from rlpre.encoders.sequence import SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.objectives.base import head
from rlpre.objectives.sequence import SymbolObjective, WindowViews
from rlpre.objectives.symbols import CLASSES, LOGITS, UNSEEN, foreground, judge, mean_where, nearest_step

HIDDEN = 256
BLOCK = (4, 12)  # fewest and most steps of a block: copying from a neighbour fails on longer ones
ROWS = (1, 3)  # fewest and most rows of cells hidden together
KINDS = ("block", "rows", "object")  # each hides cells of a third of the windows


class Masked(SymbolObjective):
    """Cross-entropy of the symbols of hidden cells; each window counts the same, however many it hides.

    A window hides one of three: all cells over a block of steps; some rows of cells over a block of steps; an object,
    which is every cell of its type and colour, over the whole window.

    Its metrics are of hidden cells with something in them; "copied" is the accuracy of answering with what the cell
    shows at the nearest step at which it is not hidden: a leak if it comes near the accuracy.
    """

    causal = False

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        assert frames.atlas is not None
        if frames.atlas.index[UNSEEN, UNSEEN, UNSEEN] < 0:
            raise RlpreError(
                f"objective 'masked' hides cells by the code (0, 0, 0), which names no tile of {frames.path}: pretrain "
                "with autoregressive or cpc"
            )
        self.read = head(encoder.num_features, HIDDEN, self.cells * LOGITS)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        assert batch.codes is not None
        hidden, kind = hide(batch.codes, batch.present)
        touched = hidden.flatten(2).any(2)
        asked = hidden.flatten(2)[touched]
        symbols = batch.codes.flatten(2, 3)[touched].long()
        logits = self.predict(views.without(hidden)[touched])
        nll, right = judge(logits[asked], symbols[asked])
        window = touched.nonzero()[:, :1].expand_as(asked)[asked]
        count = torch.bincount(window, minlength=len(hidden))
        loss = (nll / count[window]).sum() / (count > 0).sum().clamp_min(1)
        things = foreground(symbols[asked])
        copied = (nearest_step(batch.codes, ~hidden & batch.present[..., None, None]) == batch.codes).all(-1)
        values = {"nll": nll.detach(), "accuracy": right, "copied": copied.flatten(2)[touched][asked]}
        metrics = {name: mean_where(value, things) for name, value in values.items()}
        for number, name in enumerate(KINDS):
            metrics[f"accuracy_{name}"] = mean_where(right, things & (kind[window] == number))
        return loss, metrics

    def predict(self, features: Tensor) -> Tensor:
        """Logits (n, cells, LOGITS) of the frames at steps with ``features`` (n, width)."""
        logits: Tensor = self.read(features).float()
        return logits.view(-1, self.cells, LOGITS)

    def fill(self, views: WindowViews, step: int) -> Tensor:
        """See ``SymbolObjective.fill``: given both sides."""
        assert views.batch.codes is not None
        hidden = torch.zeros_like(views.batch.codes[..., 0], dtype=torch.bool)
        hidden[:, step] = True
        return self.predict(views.without(hidden)[:, step])


def hide(codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Draws what to hide.

    Args:
        codes: symbols (batch, steps, rows, columns, 3) uint8.
        present: (batch, steps) bool, with padding on the left.

    Returns:
        Hidden cells (batch, steps, rows, columns) bool, none of them padding, and of which of ``KINDS`` they are,
        (batch,) int64. Windows without an object hide a block.
    """
    steps, height = codes.shape[1:3]
    objects, found = _objects(codes, present)
    kind = torch.randint(len(KINDS), (len(codes),), device=codes.device)
    kind = kind.where(found, kind % 2)
    block = _stretch(present.sum(1), BLOCK, steps)[:, :, None, None]
    rows = _stretch(torch.full_like(kind, height), ROWS, height)[:, None, :, None]
    ways = [block.expand_as(objects), (block & rows).expand_as(objects), objects]
    return torch.stack(ways)[kind, torch.arange(len(kind), device=kind.device)], kind


def _stretch(count: Tensor, size: tuple[int, int], places: int) -> Tensor:
    """Stretches (batch, places) bool of random ``size`` among the last ``count`` (batch,) places, but never all."""
    shortest, longest = size
    drawn, begin = torch.rand(2, len(count), device=count.device).unbind()
    length = (shortest + drawn * (longest - shortest + 1)).long().minimum(count - 1)
    first = places - count + (begin * (count - length + 1)).long()
    offset = torch.arange(places, device=count.device) - first[:, None]
    return (offset >= 0) & (offset < length[:, None])


def _objects(codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The cells (batch, steps, rows, columns) of one object of each window, and whether there is one, (batch,)."""
    things = foreground(codes) & present[:, :, None, None]
    pair = codes[..., 0].long() * CLASSES[1] + codes[..., 1]
    seen = torch.zeros(len(codes), CLASSES[0] * CLASSES[1], device=codes.device)
    seen[things.nonzero()[:, 0], pair[things]] = 1
    chosen = (seen * (1 - torch.rand_like(seen))).argmax(1)  # 1 - [0, 1) is never 0
    return things & (pair == chosen[:, None, None, None]), seen.any(1)
