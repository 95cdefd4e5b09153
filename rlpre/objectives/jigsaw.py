"""Jigsaw: in which order were the tiles of this frame?

[0] Noroozi and Favaro 2016, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles".

The encoder sees the whole puzzle as one frame, so any architecture can be pretrained. Tiles are cut on cell borders
with randomly placed spare cells between them, so the phase of the grid lines does not give their places away, and
edges that continue in each other rarely do (on DoorKey-5x5 the edges alone solve 58 % of the puzzles, without gaps
all). Where tiles are pixel-identical, every order that shows the same puzzle counts as right.
"""

from itertools import permutations
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import Batch, FrameViews
from rlpre.utils import image_grid

SIDE = 2  # tiles along one side: an egocentric frame of 7 cells has too few for 3
FILL = 0.9  # largest share of a side that tiles cover; the rest is space to move


class Jigsaw(Objective):
    """Cross-entropy over the permutations of ``SIDE`` x ``SIDE`` tiles, with equivalent permutations merged.

    Its metrics are "accuracy" and "chance", the accuracy of a random answer.
    """

    orders: Tensor

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        _, height, width = encoder.input.shape
        self.cell = frames.cell
        self.tile = (_tile_cells(height // self.cell), _tile_cells(width // self.cell))
        self.register_buffer("orders", torch.from_numpy(ordered_permutations(SIDE * SIDE)))
        self.head = head(encoder.num_features, len(self.orders))

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        puzzles, right = self.puzzles(views.batch.anchor)
        logits = self.head(views.encode(puzzles)).float()
        loss = (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).mean()
        solved = right.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return loss, {"accuracy": solved, "chance": right.float().mean()}

    def puzzles(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts and shuffles frames (batch, C, H, W) uint8.

        Returns:
            Puzzles of the same shape, and which orders are right for them, (batch, orders) bool.
        """
        tiles, right = self.shuffle(frames)
        return self._assemble(tiles, frames), right

    def picture(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """Three rows: the puzzle, the frame it was cut from, the tiles in the order that the model answers."""
        frames = batch.anchor[:8]
        tiles, _ = self.shuffle(frames)
        puzzles = self._assemble(tiles, frames)
        answer = self.orders[self.head(encoder(puzzles)).argmax(1)]
        place = answer.argsort(1)  # where the tile that belongs to each place was put
        solved = self._assemble(tiles.gather(1, place[..., None, None, None].expand_as(tiles)), frames)
        return image_grid(torch.cat([puzzles, frames, solved]), len(frames))

    def shuffle(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Shuffled tiles (batch, n, C, h, w), and which orders are right for them, (batch, orders) bool."""
        tiles = self.cut(frames)
        order = self.orders[torch.randint(len(self.orders), (len(frames),), device=frames.device)]
        shuffled = tiles.gather(1, order[..., None, None, None].expand_as(tiles))  # place p shows tile order[p]
        alike = (tiles[:, :, None] == tiles[:, None]).flatten(3).all(3)  # (batch, n, n)
        fits = alike.gather(1, order[..., None].expand_as(alike))  # [b, p, t]: tile t would look the same at place p
        candidates = self.orders.T[None].expand(len(frames), -1, -1)  # (batch, places, orders)
        return shuffled, fits.gather(2, candidates).all(1)

    def cut(self, frames: Tensor) -> Tensor:
        """Tiles (batch, n, C, h, w); spare cells are put at random before and between rows and columns of tiles."""
        device, tile = frames.device, torch.tensor(self.tile, device=frames.device)
        cells = torch.tensor(frames.shape[2:], device=device) // self.cell
        draw = torch.rand(len(frames), SIDE, 2, device=device).sort(1).values
        moved = (draw * (cells - SIDE * tile + 1)).long()  # (batch, SIDE, axis), never decreasing: no overlap
        n = torch.arange(SIDE * SIDE, device=device)
        place = torch.stack([n // SIDE, n % SIDE], dim=1) * tile
        corner = (place + torch.stack([moved[:, n // SIDE, 0], moved[:, n % SIDE, 1]], dim=2)) * self.cell
        height, width = self._pixels
        rows = corner[:, :, 0, None] + torch.arange(height, device=device)
        columns = corner[:, :, 1, None] + torch.arange(width, device=device)
        source = (rows[..., :, None] * frames.shape[3] + columns[..., None, :]).flatten(1)[:, None]
        tiles = frames.flatten(2).gather(2, source.expand(-1, frames.shape[1], -1))
        return tiles.view(len(frames), -1, len(n), height, width).transpose(1, 2)

    def _assemble(self, tiles: Tensor, like: Tensor) -> Tensor:
        """Puts tiles without gaps in the middle of an empty frame."""
        height, width = self._pixels
        batch, _, channels = tiles.shape[:3]
        square = tiles.view(batch, SIDE, SIDE, channels, height, width).permute(0, 3, 1, 4, 2, 5)
        block = square.reshape(batch, channels, SIDE * height, SIDE * width)
        top, left = (like.shape[2] - block.shape[2]) // 2, (like.shape[3] - block.shape[3]) // 2
        canvas = torch.zeros_like(like)
        canvas[:, :, top : top + block.shape[2], left : left + block.shape[3]] = block
        return canvas

    @property
    def _pixels(self) -> tuple[int, int]:
        return self.tile[0] * self.cell, self.tile[1] * self.cell


def ordered_permutations(n: int) -> npt.NDArray[np.int64]:
    """All permutations of n items, (n!, n), each as far in Hamming distance from those before it as possible [0]."""
    pool = np.array(list(permutations(range(n))))
    chosen = [0]
    distance = (pool != pool[0]).sum(1)
    while distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, (pool != pool[chosen[-1]]).sum(1))
    return cast(npt.NDArray[np.int64], pool[chosen].astype(np.int64))


def _tile_cells(cells: int) -> int:
    tile = int(FILL * cells / SIDE)
    if tile < 1:
        raise RlpreError(f"a side of {cells} cells has no {SIDE} jigsaw tiles with room to move: use larger frames")
    return tile
