"""Masked: what is in the hidden cells, given what is visible around, before and after them?

[0] Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
[1] Joshi et al. 2020, "SpanBERT: Improving Pre-training by Representing and Predicting Spans": blocks, not steps.
[2] He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners": neighbours say nearly all, so hide much.

Cells are replaced by unseen ones before the frozen vision encoder reads the frame, so no feature shows them.
"""

import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore
from rlpre.encoders import SequenceEncoder
from rlpre.objectives.base import head
from rlpre.objectives.batches import WindowViews
from rlpre.objectives.symbols import CLASSES, LOGITS, SymbolObjective, balanced, foreground, mean_where, symbol_loss

HIDDEN = 256
BLOCK = (1 / 8, 3 / 8)  # shortest and longest block, as shares of a window: 4 to 12 of 32 steps
ROWS = (1, 3)  # fewest and most rows of cells hidden together
KINDS = ("block", "rows", "object")  # each hides cells of a third of the windows


class Masked(SymbolObjective):
    """Cross-entropy of the symbols of hidden cells; those with an object weigh as much as all others together.

    See `hide` for what is hidden. The metrics are of hidden cells with an object. "copied" is the accuracy of answering
    with what the cell shows at the nearest step at which it is visible; near the accuracy, the task would be trivial.
    """

    causal = False

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.blank = nn.Parameter(torch.zeros(encoder.frames.num_features))  # BERT's [MASK]; 0 is the mean frame
        self.output = head(encoder.num_features, HIDDEN, self.cells * LOGITS)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        hidden, kind = hide(batch.codes, batch.present)
        steps = hidden.flatten(2).any(2)  # with hidden cells
        asked = hidden.flatten(2)[steps]
        symbols = batch.codes.flatten(2, 3)[steps][asked].long()
        nll, right = symbol_loss(self.logits(views.masked(hidden, self.blank)[steps])[asked], symbols)
        window = steps.nonzero()[:, :1].expand_as(asked)[asked]
        objects = foreground(symbols)
        copied = (nearest_step(batch.codes, ~hidden & batch.present[..., None, None]) == batch.codes).all(-1)
        copied = copied.flatten(2)[steps][asked]
        metrics = {"nll": mean_where(nll.detach(), objects)}
        groups = {"": objects, **{f"_{name}": objects & (kind[window] == n) for n, name in enumerate(KINDS)}}
        for end, where in groups.items():
            metrics |= {f"accuracy{end}": mean_where(right, where), f"copied{end}": mean_where(copied, where)}
        return balanced(nll, objects), metrics

    def fill(self, views: WindowViews, step: int) -> Tensor:
        """See ``SymbolObjective.fill``; given the steps before and after."""
        hidden = torch.zeros_like(views.batch.codes[..., 0], dtype=torch.bool)
        hidden[:, step] = True
        return self.logits(views.masked(hidden, self.blank)[:, step])


def hide(codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Draws what to hide of windows with symbols ``codes`` (batch, steps, rows, columns, 3), none of it padding.

    In each window one of three things is hidden: all cells in every other block of steps; some rows of cells in every
    other block; or, if there is one, an object, that is all cells of its type and colour, in the whole window.

    Returns:
        Hidden cells (batch, steps, rows, columns) bool and the number of their kind in ``KINDS``, (batch,) int64.
    """
    objects, found = _objects(codes, present)
    kind = torch.randint(len(KINDS), (len(codes),), device=codes.device)
    kind = kind.where(found, kind % 2)
    block = _blocks(present)[:, :, None, None]
    rows = _rows(len(codes), codes.shape[2], codes.device)[:, None, :, None]
    way = kind[:, None, None, None]
    return torch.where(way == 2, objects, block & (rows | (way == 0))), kind


def _blocks(present: Tensor) -> Tensor:
    """Every other block (batch, steps) bool of each window, all of one random length; never all that is present."""
    count, steps = present.sum(1, keepdim=True), present.shape[1]
    drawn, begin = torch.rand(2, len(present), 1, device=present.device).unbind()
    shortest, longest = (share * steps for share in BLOCK)
    length = (shortest + drawn * (longest - shortest)).round().long().minimum(count // 2).clamp_min(1)
    place = torch.arange(steps, device=present.device) + (begin * 2 * length).long()
    return (place // length % 2 == 0) & present


def _rows(windows: int, height: int, device: torch.device) -> Tensor:
    """A few neighbouring rows of cells (windows, height) bool for each window."""
    drawn, begin = torch.rand(2, windows, 1, device=device).unbind()
    fewest, most = ROWS
    count = (fewest + drawn * (min(most, height - 1) - fewest + 1)).long()
    place = torch.arange(height, device=device) - (begin * (height - count + 1)).long()
    return (place >= 0) & (place < count)


def _objects(codes: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The cells (batch, steps, rows, columns) of one object of each window, and whether there is one, (batch,)."""
    objects = foreground(codes) & present[:, :, None, None]
    pair = codes[..., 0].long() * CLASSES[1] + codes[..., 1]
    seen = torch.zeros(len(codes), CLASSES[0] * CLASSES[1], device=codes.device)
    seen[objects.nonzero()[:, 0], pair[objects]] = 1
    chosen = (seen * (1 - torch.rand_like(seen))).argmax(1)  # 1 - [0, 1) is never 0
    return objects & (pair == chosen[:, None, None, None]), seen.any(1)


def nearest_step(codes: Tensor, visible: Tensor) -> Tensor:
    """Symbols that each cell has at the nearest step at which it is ``visible`` (batch, steps, rows, columns).

    Of two steps at one distance it is the earlier; cells that are never visible are unseen. The result has the shape
    of ``codes`` (batch, steps, rows, columns, 3).
    """
    steps = visible.shape[1]
    now = torch.arange(steps, device=codes.device)[:, None, None].expand_as(visible)
    before = torch.where(visible, now, -steps).cummax(1).values
    after = torch.where(visible, now, 3 * steps).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(now - before <= after - now, before, after)
    known = (nearest >= 0) & (nearest < steps)
    copied = codes.gather(1, nearest.clamp(0, steps - 1)[..., None].expand_as(codes))
    return copied * known[..., None]
