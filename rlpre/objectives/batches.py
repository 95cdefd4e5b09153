"""What objectives see: batches of stored frames or windows, and an encoder's features of them.

A reader draws the batches, one class for each kind of encoder; views compute each kind of features once, however many
objectives ask for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore, Indices
from rlpre.data.windows import CHUNK, PADDING, Trajectories, Windows, previous_actions
from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.features import encode, encode_windows
from rlpre.objectives.losses import AUGMENTATIONS
from rlpre.utils import to_device

UNSEEN = 0  # all three symbols of a cell that shows nothing
DISTINCT_ROWS = 8192  # rows among which different windows are sought


class Views:
    """An encoder's features of a batch, each kind computed when first asked for.

    Each of ``world`` processes that train together holds the whole batch, encodes its part of it, and gathers the
    features of the others. So each has the heads, batch statistics, negatives and loss of a single process, and the
    gradient of that loss with respect to its own features. DDP averages gradients over processes: that is right for
    the heads, whose gradients are equal, but the encoder's are parts of a sum and multiplied by ``world`` first.

    ``augment`` is a name in `AUGMENTATIONS`.
    """

    def __init__(self, encoder: Any, batch: Any, world: int = 1, augment: str = "shift") -> None:
        self.encoder, self.batch, self.world = encoder, batch, world
        self.augment = AUGMENTATIONS[augment]

    @cached_property
    def anchor(self) -> Tensor:
        """Features of the anchors, (batch, num_features), under random shifts of the frames, if there are any."""
        return self._augmented()

    @cached_property
    def second_view(self) -> Tensor:
        """The same under other, independent shifts."""
        return self._augmented()

    def share(self, work: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Computes ``work(*inputs)``; the rows of the inputs and of the result are the items of the batch."""
        if self.world == 1:
            return work(*inputs)
        rank = torch.distributed.get_rank()
        own = work(*(None if given is None else given.chunk(self.world)[rank] for given in inputs))
        parts = [torch.empty_like(own) for _ in range(self.world)]
        torch.distributed.all_gather(parts, own.detach().contiguous())
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * self.world)
        parts[rank] = own
        return torch.cat(parts)

    def _augmented(self) -> Tensor:
        raise NotImplementedError


class FrameViews(Views):
    """Features of frames; the anchors are the first frames of the pairs."""

    @cached_property
    def plain(self) -> Tensor:
        """Features of the anchors without a shift, (batch, num_features)."""
        return self.encode(self.batch.anchor)

    @cached_property
    def later(self) -> Tensor:
        """Features of the later frames, shifted as the anchors are, (batch, num_features)."""
        return self.encode(self.augment(self.batch.later))

    def encode(self, frames: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """Features (batch, num_features) of one frame for each item of the batch, (batch, C, H, W)."""
        return self.share(encoder or self.encoder, frames)

    def _augmented(self) -> Tensor:
        return self.encode(self.augment(self.batch.anchor))


class WindowViews(Views):
    """Features of the steps of windows; the anchors are their last steps."""

    @cached_property
    def steps(self) -> Tensor:
        """Features of every step, (batch, steps, width); 0 in padding."""
        return self._encode(self.batch.features)

    @property
    def plain(self) -> Tensor:
        """Features of the last steps without a shift, (batch, width)."""
        return self.steps[:, -1]

    def masked(self, hidden: Tensor, blank: Tensor) -> Tensor:
        """Features (batch, steps, width) of the windows with the cells ``hidden`` (batch, steps, rows, columns) unseen.

        ``blank`` (F,) replaces the features of frames with no visible cell: the frozen encoder was never trained on an
        empty frame, so its features of one would lie far from all others.
        """
        batch = self.batch

        def work(features: Tensor, raw: Tensor, hidden: Tensor, *others: Any) -> Any:
            """Encodes anew the frames of which a part is hidden, each distinct one once, and then the windows."""
            whole = hidden.flatten(2).all(2)
            partly = hidden.flatten(2).any(2) & ~whole
            visible = raw[partly]
            batch.store.grid(visible)[hidden[partly]] = UNSEEN
            distinct, place = torch.unique(visible.flatten(1), dim=0, return_inverse=True)
            frames = batch.store.decode(distinct.unflatten(1, visible.shape[1:]))
            features = torch.where(whole[..., None], blank.to(features.dtype), features)
            features[partly] = self.encoder.encode_frames(frames).to(features.dtype)[place]
            return self.encoder(features, *others)

        return self.share(work, batch.features, batch.raw, hidden, batch.actions, batch.mission, batch.present)

    def _encode(self, features: Tensor) -> Tensor:
        return self.share(self.encoder, features, self.batch.actions, self.batch.mission, self.batch.present)

    def _augmented(self) -> Tensor:
        rows, features = self.batch.rows, torch.zeros_like(self.batch.features)
        parts = np.array_split(rows[rows != PADDING], -(-rows.size // CHUNK))
        shifted = [self.encoder.encode_frames(self.augment(self.batch.frames(part))) for part in parts if len(part)]
        features[self.batch.present] = torch.cat(shifted).to(features.dtype)
        return self._encode(features)[:, -1]


@dataclass(frozen=True)
class Batch:
    """Pairs of frames from the same episode, on the training device.

    Single frames are pairs with themselves: ``gap`` is 0 and ``actions`` has no columns.
    """

    anchor: Tensor  # frames o_t, (batch, C, H, W) uint8 in [0, 255]
    later: Tensor  # frames o_{t+j}, same shape
    actions: Tensor  # a_t .. a_{t+j-1}, (batch, k) int64, -1 beyond j; or (batch, k, dims) float32, 0 beyond j
    gap: Tensor  # 1 <= j <= k, (batch,) int64
    anchor_id: Tensor  # equal for identical anchors, (batch,) int64
    later_id: Tensor  # the same for the later frames, in one numbering with ``anchor_id``
    codes: Tensor | None  # the anchors' symbols, (batch, rows, columns, 3) uint8; None for plain pixels
    labels: Tensor | None = None  # the anchors' label columns, (batch, labels) int64, of pixels; -1 is unknown

    def views(self, encoder: Encoder, world: int = 1, augment: str = "shift") -> FrameViews:
        """The encoder's features of the batch."""
        return FrameViews(encoder, self, world, augment)


@dataclass(frozen=True)
class WindowBatch:
    """Windows of trajectories, on the training device; padding is on the left."""

    store: FrameStore  # where they are from
    rows: Indices  # (batch, steps) int64, on the CPU; -1 is padding
    features: Tensor  # of the frames, (batch, steps, F) float32
    actions: Tensor  # before each step, (batch, steps) int64; -1 before an episode's first
    mission: Tensor | None  # (batch, length) int64
    present: Tensor  # (batch, steps) bool; False is padding
    ids: Tensor  # equal for identical frames, (batch, steps) int64; arbitrary in padding
    raw: Tensor | None  # frames as stored, (batch, steps, ...) uint8, 0 in padding; None for plain pixels
    ahead: int  # largest number of steps between a step and what is predicted from it

    @property
    def codes(self) -> Tensor | None:
        """Symbols (batch, steps, rows, columns, 3) uint8, unseen in padding; None for plain pixels."""
        return None if self.raw is None else self.store.grid(self.raw)

    @cached_property
    def anchor(self) -> Tensor:
        """The last frames, (batch, C, H, W) uint8."""
        return self.frames(self.rows[:, -1])

    @property
    def anchor_id(self) -> Tensor:
        """Equal for identical last frames, (batch,) int64."""
        return self.ids[:, -1]

    def frames(self, rows: Indices) -> Tensor:
        """Frames (n, C, H, W) uint8 of ``rows`` (n,) of the store."""
        return self.store.decode(to_device(self.store.read(rows), self.features.device))

    def views(self, encoder: SequenceEncoder, world: int = 1, augment: str = "shift") -> WindowViews:
        """The encoder's features of the batch."""
        return WindowViews(encoder, self, world, augment)


class FrameReader:
    """Reads a store for an encoder of frames, ``reads`` of them for each item of a batch; see `make_reader`."""

    groups: Indices | None = None  # a probe may be trained and tested on any two different frames

    def __init__(
        self, frames: FrameStore, encoder: Encoder, gap: int | None = None, device: torch.device | None = None
    ) -> None:
        self.frames, self.device = frames, device or encoder.device
        self.pairs = None if gap is None else frames.pairs(gap)
        self.reads = 1 if gap is None else 2

    def draw(self, size: int, rng: np.random.Generator) -> Batch:
        """Draws a batch of pairs or of single frames; only raw rows (codes of a grid world) travel to the device."""
        frames = self.frames
        if self.pairs:
            anchor, later, actions = self.pairs.sample(size, rng)
        else:
            anchor = later = frames.sample(size, rng)
            actions = np.empty((size, 0), np.int64)
        raw = to_device(frames.read(anchor), self.device)
        shown = frames.decode(raw)
        shown_later = frames.decode(to_device(frames.read(later), self.device)) if self.pairs else shown
        names = () if frames.atlas else frames.labels  # symbols say more
        labels = np.array([frames.column(name)[anchor] for name in names], np.int64).reshape(-1, size).T
        numbers = (actions, later - anchor, frames.ids[anchor], frames.ids[later], labels)
        acted, gap, anchor_id, later_id, known = (to_device(each, self.device) for each in numbers)
        codes = frames.grid(raw) if frames.atlas else None
        return Batch(shown, shown_later, acted, gap, anchor_id, later_id, codes, known)

    def distinct(self, rows: Indices) -> Indices:
        """One of ``rows`` for each different frame among them."""
        _, first = np.unique(self.frames.ids[rows], return_index=True)
        return rows[first]

    def encode(self, encoder: Encoder, rows: Indices) -> Tensor:
        """Features (len(rows), num_features) of single rows, in evaluation mode, on the CPU."""
        return encode(encoder, self.frames, rows)


class WindowReader:
    """Reads a store for a sequence encoder, ``reads`` frames for each window of a batch; see `make_reader`.

    ``groups`` (N,) int64 are the episodes of the rows. Rows of one episode share their past, so a probe must not be
    trained and tested on the same one.
    """

    def __init__(
        self, frames: FrameStore, encoder: SequenceEncoder, ahead: int | None = None, device: torch.device | None = None
    ) -> None:
        if encoder.window < 2:
            raise RlpreError("a window of 1 step has nothing to predict: give the sequence encoder at least window=2")
        self.frames, self.device, self.ahead = frames, device or encoder.device, ahead or 1
        self.trajectories = Trajectories(frames, encoder, self.device)
        self.windows = Windows(frames, encoder.window)
        self.reads, self.groups = encoder.window, frames.episode

    def draw(self, size: int, rng: np.random.Generator) -> WindowBatch:
        """Draws a batch of windows."""
        return self.batch(self.windows.sample(size, rng))

    def batch(self, rows: Indices) -> WindowBatch:
        """The batch of these windows, (batch, steps) int64."""
        raw = None
        if self.frames.atlas:
            raw = self.frames.read(np.maximum(rows, 0))
            raw[torch.from_numpy(rows == PADDING).flatten()] = UNSEEN
            raw = to_device(raw.view(*rows.shape, *raw.shape[1:]), self.device)
        features, actions, mission, present = self.trajectories.inputs(rows)
        ids = to_device(self.frames.ids[rows], self.device)
        return WindowBatch(self.frames, rows, features, actions, mission, present, ids, raw, self.ahead)

    def distinct(self, rows: Indices) -> Indices:
        """One of the first ``DISTINCT_ROWS`` of ``rows`` for each different window that ends at one of them."""
        rows = rows[:DISTINCT_ROWS]
        windows = self.windows.ending(rows)
        frames = np.where(windows == PADDING, PADDING, self.frames.ids[windows])
        _, first = np.unique(np.hstack([frames, previous_actions(self.frames, windows)]), axis=0, return_index=True)
        return rows[first]

    def encode(self, encoder: SequenceEncoder, rows: Indices) -> Tensor:
        """Features (len(rows), width) at single rows given their windows, in evaluation mode, on the CPU."""
        return encode_windows(encoder, self.trajectories, rows)


AnyBatch = Batch | WindowBatch
AnyReader = FrameReader | WindowReader


def make_reader(
    frames: FrameStore, encoder: AnyEncoder, gap: int | None = None, device: torch.device | None = None
) -> AnyReader:
    """The reader of a store for an encoder of either kind; its batches go to ``device``, by default the encoder's.

    ``gap`` is the largest number of steps between the frames of a pair (None: single frames), or that `Cpc` predicts
    ahead (None: 1).

    Raises:
        RlpreError: if no frame changes within ``gap`` steps, or a sequence encoder cannot read the store.
    """
    if isinstance(encoder, SequenceEncoder):
        return WindowReader(frames, encoder, gap, device)
    return FrameReader(frames, encoder, gap, device)
