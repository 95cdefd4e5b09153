"""What objectives on sequences see: a batch of windows, and the features of their steps."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlpre.augment import random_shift
from rlpre.device import ship
from rlpre.encoders.sequence import SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.objectives.base import Objective
from rlpre.objectives.batch import Sharing
from rlpre.objectives.symbols import LOGITS, UNSEEN, count_cells, imagined
from rlpre.report.pictures import grid
from rlpre.sampling import Indices
from rlpre.sequences import CHUNK, PADDING, Trajectories, Windows, previous_actions

WINDOWS = 256  # encoded at a time outside of training
SOME = 8192  # windows among which different ones are sought


@dataclass(frozen=True)
class WindowBatch:
    """Windows of trajectories, on the training device; padding is on the left.

    Attributes:
        store: where they are from.
        rows: (batch, steps) int64, on the CPU; -1 is padding.
        features: of the frames, (batch, steps, F) float32.
        actions: before each step, (batch, steps) int64; -1 before an episode's first.
        mission: (batch, length) int64, or None.
        present: (batch, steps) bool; False is padding.
        ids: equal for identical frames, (batch, steps) int64; padding has some frame's.
        codes: symbols (batch, steps, rows, columns, 3) uint8, unseen in padding; None for plain pixels.
        ahead: most steps between a step and what is predicted from it, for objectives that look further than one.
    """

    store: FrameStore
    rows: Indices
    features: Tensor
    actions: Tensor
    mission: Tensor | None
    present: Tensor
    ids: Tensor
    codes: Tensor | None
    ahead: int

    @cached_property
    def anchor(self) -> Tensor:
        """The last frames, (batch, C, H, W) uint8."""
        return self.shown(self.rows[:, -1])

    @property
    def anchor_id(self) -> Tensor:
        """Equal for identical last frames, (batch,) int64."""
        return self.ids[:, -1]

    def shown(self, rows: Indices) -> Tensor:
        """Frames (n, C, H, W) uint8 of ``rows`` (n,)."""
        return self.store.decode(ship(self.store.read(rows), self.features.device))

    def views(self, encoder: SequenceEncoder, rank: int = 0, world: int = 1) -> "WindowViews":
        """What an encoder makes of the batch."""
        return WindowViews(encoder, self, rank, world)


class WindowReader:
    """How a sequence encoder reads a store: window by window.

    Args:
        frames: the store.
        encoder: what will read it.
        ahead: see `WindowBatch`.
        device: where batches go.

    Attributes:
        reads: frames that are read for each item of a batch.
        groups: (N,) int64: rows of one episode share their past, so probes are never tested on an episode that they
            were trained on.
    """

    def __init__(self, frames: FrameStore, encoder: SequenceEncoder, ahead: int | None, device: torch.device) -> None:
        if encoder.window < 2:
            raise RlpreError("a window of 1 step has nothing to predict: give the sequence encoder at least window=2")
        self.frames, self.device, self.ahead = frames, device, ahead or 1
        self.trajectories = Trajectories(frames, encoder, device)
        self.windows = Windows(frames, encoder.window)
        self.reads, self.groups = encoder.window, frames.episode

    def draw(self, size: int, rng: np.random.Generator) -> WindowBatch:
        """A batch of windows drawn at random."""
        return self.batch(self.windows.sample(size, rng))

    def batch(self, rows: Indices) -> WindowBatch:
        """The batch of these windows, (batch, steps) int64."""
        codes = None
        if self.frames.atlas:
            codes = self.frames.read(np.maximum(rows, 0))
            codes[torch.from_numpy(rows == PADDING).flatten()] = UNSEEN
            codes = ship(codes.view(*rows.shape, *codes.shape[1:]), self.device)
        features, actions, mission, present = self.trajectories.inputs(rows)
        ids = ship(self.frames.ids[rows], self.device)
        return WindowBatch(self.frames, rows, features, actions, mission, present, ids, codes, self.ahead)

    def distinct(self, rows: Indices) -> Indices:
        """One of the first ``SOME`` of ``rows`` for each different window that ends at one of them."""
        rows = rows[:SOME]
        windows = self.windows.ending(rows)
        frames = np.where(windows == PADDING, PADDING, self.frames.ids[windows])
        _, first = np.unique(np.hstack([frames, previous_actions(self.frames, windows)]), axis=0, return_index=True)
        return rows[first]

    @torch.no_grad()
    def encode(self, encoder: SequenceEncoder, rows: Indices) -> Tensor:
        """Features (len(rows), width) at single rows given their windows, in evaluation mode, on the CPU."""
        was_training = encoder.training
        encoder.eval()
        chunks = [self.windows.ending(rows[at : at + WINDOWS]) for at in range(0, len(rows), WINDOWS)]
        features = [encoder(*self.trajectories.inputs(chunk))[:, -1].float().cpu() for chunk in chunks]
        encoder.train(was_training)
        return torch.cat(features)


class WindowViews(Sharing):
    """Features of the steps of windows, computed once, however many objectives ask for them.

    Args:
        encoder: maps windows to features.
        batch: the whole batch.
        rank: see `Sharing`.
        world: see `Sharing`.
    """

    def __init__(self, encoder: SequenceEncoder, batch: WindowBatch, rank: int = 0, world: int = 1) -> None:
        super().__init__(rank, world)
        self.encoder, self.batch = encoder, batch

    @cached_property
    def steps(self) -> Tensor:
        """Features of every step, (batch, steps, width); 0 in padding."""
        return self._encode(self.batch.features)

    @property
    def plain(self) -> Tensor:
        """Features of the last steps, (batch, width)."""
        return self.steps[:, -1]

    @cached_property
    def anchor(self) -> Tensor:
        """Features of the last steps of windows in which each frame is shifted at random."""
        return self._shifted()

    @cached_property
    def twin(self) -> Tensor:
        """Features of the last steps under other shifts."""
        return self._shifted()

    def without(self, hidden: Tensor, blank: Tensor) -> Tensor:
        """Features (batch, steps, width) of the windows as they look with some cells unseen.

        Args:
            hidden: (batch, steps, rows, columns) bool.
            blank: (F,), in place of the features of frames of which all is hidden: the vision encoder knows no others
                that show nothing, and would answer with features far from all others.
        """
        batch = self.batch

        def work(features: Tensor, codes: Tensor, hidden: Tensor, *others: Any) -> Tensor:
            """What one device does with its share."""
            whole = hidden.flatten(2).all(2)
            partly = hidden.flatten(2).any(2) & ~whole
            seen = codes[partly].masked_fill(hidden[partly][..., None], UNSEEN)
            distinct, place = torch.unique(seen.flatten(1), dim=0, return_inverse=True)
            frames = batch.store.decode(distinct.unflatten(1, seen.shape[1:]))
            features = torch.where(whole[..., None], blank.to(features.dtype), features)
            features[partly] = self.encoder.encode_frames(frames).to(features.dtype)[place]
            return self.encoder(features, *others)  # type: ignore[no-any-return]

        return self.share(work, batch.features, batch.codes, hidden, batch.actions, batch.mission, batch.present)

    def _encode(self, features: Tensor) -> Tensor:
        batch = self.batch
        return self.share(self.encoder, features, batch.actions, batch.mission, batch.present)

    def _shifted(self) -> Tensor:
        rows, features = self.batch.rows, torch.zeros_like(self.batch.features)
        parts = np.array_split(rows[rows != PADDING], -(-rows.size // CHUNK))
        shifted = [self.encoder.encode_frames(random_shift(self.batch.shown(part))) for part in parts if len(part)]
        features[self.batch.present] = torch.cat(shifted).to(features.dtype)
        return self._encode(features)[:, -1]


class SequenceObjective(Objective):
    """An objective on windows.

    Attributes:
        causal: whether the encoder must not see what comes after a step, or must.

    Raises:
        RlpreError: if the encoder is of the other sort.
    """

    kind = "sequence"
    needs = "actions"
    causal: ClassVar[bool] = True

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        if encoder.causal != self.causal:
            name = type(self).__name__.lower()
            why = "would be shown its own answers" if self.causal else "fills in what is hidden from both sides"
            raise RlpreError(f"objective {name!r} {why}: build the sequence encoder with causal={self.causal}")

    @abstractmethod
    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""


class SymbolObjective(SequenceObjective):
    """An objective on windows that answers with the symbols of every cell.

    Attributes:
        cells: of a frame.

    Raises:
        RlpreError: if the frames are plain pixels.
    """

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells = count_cells(frames, type(self).__name__.lower(), instead=": pretrain with cpc, which does without")

    @abstractmethod
    def fill(self, views: WindowViews, step: int) -> Tensor:
        """Logits (batch, cells, LOGITS) of the frames at ``step``, given all that the model may see but them."""

    def picture(self, encoder: SequenceEncoder, batch: WindowBatch) -> Tensor | None:
        """Three rows from the middle of windows: the frame before, the frame that is asked for, the model's answer."""
        assert batch.codes is not None
        step, shown = batch.rows.shape[1] // 2, np.maximum(batch.rows[:8], 0)
        logits = self.fill(batch.views(encoder), step)[:8].view(-1, *batch.codes.shape[2:4], LOGITS)
        frames = [
            batch.shown(shown[:, step - 1]).cpu(),
            batch.shown(shown[:, step]).cpu(),
            imagined(batch.store, logits),
        ]
        return grid(torch.cat(frames), len(shown))
