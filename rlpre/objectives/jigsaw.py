"""Jigsaw: in which order were the tiles of this frame?

[0] Noroozi and Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles".

The whole puzzle is one frame for the encoder, so that any architecture can play. Tiles are cut on cell borders with
spare cells between them whose place is drawn anew: the phase of the grid lines says nothing, and edges that go on in
each other say less, though walls are longer than a gap (on DoorKey-5x5 the edges alone solve .58 of the puzzles, all
of them without gaps). Where tiles are pixel-identical, every order that shows the same puzzle counts as right.
"""

from itertools import islice, permutations
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batch import Batch, Views
from rlpre.report.pictures import grid

SIDE = 2  # tiles along one side: egocentric frames of 7 cells leave little to order at 3
ORDERS = 64  # at most this many permutations; 2 x 2 has 24
POOL = 5040  # candidates among which far permutations are sought
FILL = 0.9  # share of a side that tiles may cover; the rest is jitter and gap


class Jigsaw(Objective):
    """Cross-entropy over permutations of ``SIDE`` x ``SIDE`` tiles, with equivalent permutations merged."""

    orders: Tensor

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        _, height, width = encoder.input.shape
        self.cell = frames.cell
        self.tile = (_tile_cells(height // self.cell), _tile_cells(width // self.cell))
        self.register_buffer("orders", torch.from_numpy(far_permutations(SIDE * SIDE, ORDERS)))
        self.head = head(encoder.num_features, len(self.orders))

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        puzzles, right = self.puzzles(views.batch.anchor)
        logits = self.head(views.encode(puzzles)).float()
        loss = (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).mean()
        solved = right.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return loss, {"accuracy": solved, "chance": right.float().mean()}

    def puzzles(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts and shuffles frames.

        Args:
            frames: (batch, C, H, W) uint8.

        Returns:
            Puzzles of the same shape, and which orders are right for them, (batch, orders) bool.
        """
        shown, right = self._shuffle(frames)
        return self._lay(shown, frames), right

    def picture(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """Three rows: the puzzle, the frame it was cut from, the tiles put back as the model answers."""
        frames = batch.anchor[:8]
        shown, _ = self._shuffle(frames)
        puzzles = self._lay(shown, frames)
        answer = self.orders[self.head(encoder(puzzles)).argmax(1)]
        back = answer.argsort(1)  # place t gets the piece that was claimed to show tile t
        solved = self._lay(shown.gather(1, back[..., None, None, None].expand_as(shown)), frames)
        return grid(torch.cat([puzzles, frames, solved]), len(frames))

    def _shuffle(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Shuffled tiles (batch, n, C, h, w), and which orders are right for them, (batch, orders) bool."""
        tiles = self._cut(frames)
        given = self.orders[torch.randint(len(self.orders), (len(frames),), device=frames.device)]
        shown = tiles.gather(1, given[..., None, None, None].expand_as(tiles))  # place p shows tile given[p]
        alike = (tiles[:, :, None] == tiles[:, None]).flatten(3).all(3)  # (batch, n, n)
        agree = alike.gather(1, given[..., None].expand_as(alike))  # [b, p, t]: tile t would look right at place p
        claims = self.orders.T[None].expand(len(frames), -1, -1)  # (batch, places, orders)
        return shown, agree.gather(2, claims).all(1)

    @property
    def _pixels(self) -> tuple[int, int]:
        return self.tile[0] * self.cell, self.tile[1] * self.cell

    def _slots(self, jitter: Tensor) -> Tensor:
        """Top left pixels (batch, n, 2) of every place, moved by ``jitter`` cells."""
        n = torch.arange(SIDE * SIDE, device=jitter.device)
        place = torch.stack([n // SIDE * self.tile[0], n % SIDE * self.tile[1]], dim=1)
        return (place + jitter) * self.cell

    def _cut(self, frames: Tensor) -> Tensor:
        """Tiles (batch, n, C, h, w), each row and column of tiles moved by its own growing number of spare cells."""
        rows, columns = frames.shape[2] // self.cell, frames.shape[3] // self.cell
        spare = torch.tensor([rows - SIDE * self.tile[0], columns - SIDE * self.tile[1]], device=frames.device)
        draw = torch.rand(len(frames), SIDE, 2, device=frames.device).sort(1).values
        moved = (draw * (spare + 1)).long()  # (batch, SIDE, axis), never decreasing, so tiles do not overlap
        n = torch.arange(SIDE * SIDE, device=frames.device)
        jitter = torch.stack([moved[:, n // SIDE, 0], moved[:, n % SIDE, 1]], dim=2)
        return _windows(frames, self._slots(jitter), self._pixels)

    def _lay(self, tiles: Tensor, like: Tensor) -> Tensor:
        """Lays tiles on an empty frame without gaps, in the middle."""
        height, width = self._pixels
        batch, _, channels = tiles.shape[:3]
        square = tiles.view(batch, SIDE, SIDE, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        block = square.reshape(batch, channels, SIDE * height, SIDE * width)
        top, left = (like.shape[2] - block.shape[2]) // 2, (like.shape[3] - block.shape[3]) // 2
        canvas = torch.zeros_like(like)
        canvas[:, :, top : top + block.shape[2], left : left + block.shape[3]] = block
        return canvas


def far_permutations(n: int, count: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` permutations of n items, chosen greedily so that the smallest Hamming distance stays large.

    Algorithm 1 of [0], on all permutations where there are few and on a seeded random pool where there are many.
    """
    if n <= 7:
        pool = np.array(list(islice(permutations(range(n)), POOL)))
    else:
        pool = np.random.default_rng(0).permuted(np.tile(np.arange(n), (POOL, 1)), axis=1)
    chosen = [0]
    distance = (pool != pool[0]).sum(1)
    while len(chosen) < min(count, len(pool)) and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, (pool != pool[chosen[-1]]).sum(1))
    return cast(npt.NDArray[np.int64], pool[chosen].astype(np.int64))


def _tile_cells(cells: int) -> int:
    tile = int(FILL * cells / SIDE)
    if tile < 1:
        raise RlpreError(f"a side of {cells} cells has no {SIDE} jigsaw tiles with room to move: use larger frames")
    return tile


def _windows(frames: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts windows of ``size`` (h, w) at pixel corners (batch, n, 2) out of frames: (batch, n, C, h, w)."""
    height, width = size
    device = frames.device
    rows = corner[:, :, 0, None] + torch.arange(height, device=device)
    columns = corner[:, :, 1, None] + torch.arange(width, device=device)
    source = (rows[..., :, None] * frames.shape[3] + columns[..., None, :]).flatten(1)[:, None]
    cut = frames.flatten(2).gather(2, source.expand(-1, frames.shape[1], -1))
    return cut.view(len(frames), -1, corner.shape[1], height, width).transpose(1, 2)
