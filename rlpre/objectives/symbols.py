"""Reading the symbols of a grid world's cells from features, and how well a copy of what is near would do."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.errors import RlpreError
from rlpre.frames import FrameStore

CLASSES = (16, 8, 64)  # type, colour, flags of a cell: room for every grid-world code
LOGITS = sum(CLASSES)
UNSEEN = 0  # in all three symbols: a cell of which nothing is known
BACKGROUND = 4  # types below: unseen, empty, wall, floor


def count_cells(frames: FrameStore, objective: str, instead: str = "") -> int:
    """How many cells a frame has.

    Raises:
        RlpreError: if the store holds pixels.
    """
    if frames.atlas is None:
        raise RlpreError(f"objective {objective!r} reads symbols, but {frames.path} holds plain pixels{instead}")
    return int(frames.codes([0])[0, ..., 0].size)


def judge(logits: Tensor, symbols: Tensor, reduction: Literal["none", "mean"] = "none") -> tuple[Tensor, Tensor]:
    """Compares answers with the symbols.

    Args:
        logits: (..., LOGITS), of type, colour and flags.
        symbols: (..., 3) int64.
        reduction: "none", or "mean" over the cells.

    Returns:
        Negative log-likelihood in nats, the sum over the three symbols, (...) or scalar, and whether all three have
        the largest logit, (...).
    """
    loss = torch.zeros((), device=symbols.device)
    right = torch.ones_like(symbols[..., 0], dtype=torch.bool)
    for channel, part in enumerate(_parts(logits)):
        wanted = symbols[..., channel]
        loss = loss + F.cross_entropy(part.flatten(0, -2), wanted.flatten(), reduction=reduction)
        right &= part.argmax(-1) == wanted
    return loss if reduction == "mean" else loss.view_as(right), right


def _parts(logits: Tensor) -> tuple[Tensor, ...]:
    return logits.split(CLASSES, dim=-1)  # type: ignore[no-untyped-call, no-any-return]


def imagined(frames: FrameStore, logits: Tensor) -> Tensor:
    """The most likely frames (n, C, H, W) uint8, given logits (n, rows, columns, LOGITS), on the CPU.

    A cell whose symbols together name no tile is drawn unseen.
    """
    assert frames.atlas is not None
    codes = np.stack([part.argmax(-1).cpu().numpy() for part in _parts(logits)], axis=-1)
    index = frames.atlas.index
    beyond = (codes >= index.shape).any(-1)
    codes[beyond] = UNSEEN
    codes[index[tuple(np.moveaxis(codes, -1, 0))] < 0] = UNSEEN
    return frames.decode(torch.from_numpy(codes.astype(np.uint8)))


def foreground(symbols: Tensor) -> Tensor:
    """Cells (...) with something in them, of symbols (..., 3)."""
    return symbols[..., 0] >= BACKGROUND


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values at which ``where`` is True; 0 if it is nowhere."""
    return (values * where).sum() / where.sum().clamp_min(1)


def balanced(losses: Tensor, things: Tensor) -> Tensor:
    """Mean of two means: over the cells with something in them, and over all others.

    Of the cells in MiniGrid's views some 3 % are things: a plain mean is small once walls and floor are right, and what
    is learned tells little of doors and keys.
    """
    return (mean_where(losses, things) + mean_where(losses, ~things)) / 2


def nearest_step(codes: Tensor, visible: Tensor) -> Tensor:
    """Symbols (batch, steps, rows, columns, 3) that each cell has at the nearest step at which it can be seen.

    The earlier one of two as near; unseen where a cell can never be seen.

    Args:
        codes: symbols, of the same shape.
        visible: (batch, steps, rows, columns) bool.
    """
    steps = visible.shape[1]
    now = torch.arange(steps, device=codes.device)[:, None, None].expand_as(visible)
    before = torch.where(visible, now, -steps).cummax(1).values
    after = torch.where(visible, now, 3 * steps).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(now - before <= after - now, before, after)
    known = (nearest >= 0) & (nearest < steps)
    copied = codes.gather(1, nearest.clamp(0, steps - 1)[..., None].expand_as(codes))
    return copied * known[..., None]
