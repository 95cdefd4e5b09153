"""What an objective sees: a batch of frames, and its features under random shifts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from rlpre.augment import random_shift
from rlpre.device import ship
from rlpre.encoders import Encoder
from rlpre.frames import FrameStore
from rlpre.measure.probe import encode
from rlpre.sampling import Indices, Pairs


@dataclass(frozen=True)
class Batch:
    """Pairs of frames from the same episode, on the training device.

    Frames that were drawn singly are pairs with themselves: ``gap`` is 0, there are no ``actions``.

    Attributes:
        anchor: frames o_t, (batch, C, H, W) uint8 in [0, 255].
        later: frames o_{t+j}, same shape.
        actions: a_t .. a_{t+j-1}, (batch, k) int64, -1 beyond the gap j; or (batch, k, dims) float32, 0 beyond it.
        gap: 1 <= j <= k, (batch,) int64.
        anchor_id: equal for identical anchors, (batch,) int64.
        later_id: the same for the later frames, in one numbering with ``anchor_id``.
        codes: the anchors' symbols, (batch, rows, columns, 3) uint8, or None for plain pixels.
    """

    anchor: Tensor
    later: Tensor
    actions: Tensor
    gap: Tensor
    anchor_id: Tensor
    later_id: Tensor
    codes: Tensor | None

    @property
    def action(self) -> Tensor:
        """a_t, taken at the anchor, (batch,) int64 or (batch, dims) float32."""
        return self.actions[:, 0]

    def views(self, encoder: Encoder, rank: int = 0, world: int = 1) -> "Views":
        """What an encoder makes of the batch."""
        return Views(encoder, self, rank, world)


def draw_batch(
    frames: FrameStore, pairs: Pairs | None, size: int, rng: np.random.Generator, device: torch.device
) -> Batch:
    """Draws a batch of pairs, or of single frames if ``pairs`` is None.

    Only raw rows (codes of a grid world, else pixels) travel to the device.
    """
    if pairs:
        anchor, later, actions = pairs.sample(size, rng)
    else:
        anchor = later = frames.sample(size, rng)
        actions = np.empty((size, 0), np.int64)
    raw = ship(frames.read(anchor), device)
    shown = frames.decode(raw)
    return Batch(
        anchor=shown,
        later=frames.decode(ship(frames.read(later), device)) if pairs else shown,
        actions=ship(actions, device),
        gap=ship(later - anchor, device),
        anchor_id=ship(frames.ids[anchor], device),
        later_id=ship(frames.ids[later], device),
        codes=raw if frames.atlas else None,
    )


class FrameReader:
    """How a vision encoder reads a store: frame by frame.

    Args:
        frames: the store.
        encoder: what will read it.
        gap: most steps between the frames of a pair; None: single frames.
        device: where batches go.

    Attributes:
        reads: frames that are encoded for each item of a batch.
        groups: None: any two different frames may be told apart by a probe.
    """

    groups: Indices | None = None

    def __init__(self, frames: FrameStore, encoder: Encoder, gap: int | None, device: torch.device) -> None:
        self.frames, self.device = frames, device
        self.pairs = None if gap is None else frames.pairs(gap)
        self.reads = 1 if gap is None else 2

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """A batch of pairs or of single frames."""
        return draw_batch(self.frames, self.pairs, size, rng, self.device)

    def distinct(self, rows: Indices) -> Indices:
        """One of ``rows`` for each different frame among them."""
        _, first = np.unique(self.frames.ids[rows], return_index=True)
        return rows[first]

    def encode(self, encoder: Encoder, rows: Indices) -> Tensor:
        """Features (len(rows), num_features) of single rows, in evaluation mode, on the CPU."""
        return encode(encoder, self.frames, rows)


class Sharing:
    """The work of an encoder on a batch, shared out among the processes that train together.

    Processes that train together all hold the whole batch and share out only the encoder's work, which is nearly all
    of it: each encodes its part and gathers the features of the others. So every process computes the same heads,
    normalisation, negatives and loss as a single one would, and the whole gradient of its own features, negatives for
    others among them. DDP then averages over processes: right for the heads, whose gradients are equal; the encoder's
    are the parts of a sum, so its features pass gradients on multiplied by the number of processes.

    Args:
        rank: number of this process.
        world: how many processes train together; the batch is a multiple of it.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def share(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """``work(*inputs)``, whose lines belong to the lines of each of the inputs, the items of the batch."""
        if self.world == 1:
            return work(*inputs)
        own = work(*(None if given is None else given.chunk(self.world)[self.rank] for given in inputs))
        parts = [torch.empty_like(own) for _ in range(self.world)]
        torch.distributed.all_gather(parts, own.detach().contiguous())
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * self.world)  # type: ignore[no-untyped-call]
        parts[self.rank] = own
        return torch.cat(parts)


class Views(Sharing):
    """Features of a batch under random shifts; each is encoded once, however many objectives ask for it.

    Args:
        encoder: maps frames to features.
        batch: the whole batch.
        rank: see `Sharing`.
        world: see `Sharing`.
    """

    def __init__(self, encoder: Encoder, batch: Batch, rank: int = 0, world: int = 1) -> None:
        super().__init__(rank, world)
        self.encoder, self.batch = encoder, batch

    @cached_property
    def plain(self) -> Tensor:
        """Features of the anchors as they are, (batch, num_features)."""
        return self.encode(self.batch.anchor)

    @cached_property
    def anchor(self) -> Tensor:
        """Features of the shifted anchors, (batch, num_features)."""
        return self.encode(random_shift(self.batch.anchor))

    @cached_property
    def twin(self) -> Tensor:
        """Features of the anchors under a second, independent shift."""
        return self.encode(random_shift(self.batch.anchor))

    @cached_property
    def later(self) -> Tensor:
        """Features of the shifted later frames."""
        return self.encode(random_shift(self.batch.later))

    def encode(self, frames: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """Features (batch, num_features) of one frame for each row of the batch, (batch, C, H, W)."""
        return self.share(encoder or self.encoder, frames)
