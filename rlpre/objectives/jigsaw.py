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
from torch.nn import functional as F

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
        self.cell = frames.cell
        self.tile = [int(FILL * (side // self.cell) / SIDE) for side in encoder.input.shape[1:]]  # in cells
        if min(self.tile) < 1:
            raise RlpreError(
                f"frames of {encoder.input.shape} have no {SIDE} x {SIDE} jigsaw tiles with room to move: use larger"
            )
        self.register_buffer("orders", torch.from_numpy(ordered_permutations(SIDE * SIDE)))
        self.head = head(encoder.num_features, len(self.orders))

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        frames = views.batch.anchor
        tiles, right = self.shuffle(frames)
        logits = self.head(views.encode(assemble(tiles, frames))).float()
        loss = (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).mean()
        solved = right.gather(1, logits.argmax(1, keepdim=True)).float().mean()
        return loss, {"accuracy": solved, "chance": right.float().mean()}

    def picture(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """Three rows: the puzzle, the frame it was cut from, the tiles in the order that the model answers."""
        frames = batch.anchor[:8]
        tiles, _ = self.shuffle(frames)
        puzzles = assemble(tiles, frames)
        answer = self.orders[self.head(encoder(puzzles)).argmax(1)]
        place = answer.argsort(1)  # where the tile that belongs to each place was put
        solved = assemble(tiles[torch.arange(len(frames))[:, None], place], frames)
        return image_grid(torch.cat([puzzles, frames, solved]), len(frames))

    def shuffle(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Shuffled tiles (batch, n, C, h, w) of frames, and which orders are right for them, (batch, orders) bool."""
        tiles, each = self.cut(frames), torch.arange(len(frames), device=frames.device)[:, None]
        order = self.orders[torch.randint(len(self.orders), (len(frames),), device=frames.device)]
        alike = (tiles[:, :, None] == tiles[:, None]).flatten(3).all(3)  # (batch, n, n)
        fits = alike[each, order]  # [b, p, t]: tile t would look the same at place p, which shows tile order[p]
        return tiles[each, order], fits[:, torch.arange(order.shape[1])[:, None], self.orders.T].all(1)

    def cut(self, frames: Tensor) -> Tensor:
        """Tiles (batch, n, C, h, w); spare cells are put at random before and between rows and columns of tiles."""
        device, tile = frames.device, torch.tensor(self.tile, device=frames.device)
        cells = torch.tensor(frames.shape[2:], device=device) // self.cell
        draw = torch.rand(len(frames), SIDE, 2, device=device).sort(1).values
        moved = (draw * (cells - SIDE * tile + 1)).long()  # (batch, SIDE, axis), never decreasing: no overlap
        corner = (moved + torch.arange(SIDE, device=device)[:, None] * tile) * self.cell
        top, left = corner[:, :, None, 0].expand(-1, -1, SIDE), corner[:, None, :, 1].expand(-1, SIDE, -1)
        height, width = (torch.arange(cells * self.cell, device=device) for cells in self.tile)
        rows, columns = top.flatten(1)[..., None, None] + height[:, None], left.flatten(1)[..., None, None] + width
        return frames[torch.arange(len(frames))[:, None, None, None], :, rows, columns].movedim(-1, 2)


def assemble(tiles: Tensor, like: Tensor) -> Tensor:
    """Puzzles of the shape of ``like`` (batch, C, H, W): tiles (batch, n, C, h, w) without gaps, in the middle."""
    square = tiles.reshape(-1, SIDE, SIDE, *tiles.shape[2:]).permute(0, 3, 1, 4, 2, 5)
    block = square.flatten(4, 5).flatten(2, 3)
    spare_rows, spare_columns = like.shape[2] - block.shape[2], like.shape[3] - block.shape[3]
    top, left = spare_rows // 2, spare_columns // 2
    return F.pad(block, (left, spare_columns - left, top, spare_rows - top))


def ordered_permutations(n: int) -> npt.NDArray[np.int64]:
    """All permutations of n items, (n!, n), each as far in Hamming distance from those before it as possible [0]."""
    pool = np.array(list(permutations(range(n))))
    chosen = [0]
    distance = (pool != pool[0]).sum(1)
    while distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, (pool != pool[chosen[-1]]).sum(1))
    return cast(npt.NDArray[np.int64], pool[chosen].astype(np.int64))
