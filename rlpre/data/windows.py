"""Trajectories of a frame store for sequence encoders: windows of rows, and the encoder's inputs at each row."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlpre.data.store import FrameStore, Indices
from rlpre.errors import RlpreError
from rlpre.utils import to_device

PADDING = -1  # a row before the first one of an episode
NO_ACTION = -1  # before the first step of an episode, and after its last
CHUNK = 512  # frames encoded at a time


class Windows:
    """Windows of ``length`` rows that never cross an episode; in shorter episodes they are padded on the left.

    An `RlpreError` refuses a window that is longer than every episode.
    """

    def __init__(self, store: FrameStore, length: int) -> None:
        starts = np.flatnonzero(store.column("episode_start"))
        ends = np.append(starts[1:], len(store)) - 1
        longest = int((ends - starts).max()) + 1
        if not 1 <= length <= longest:
            raise RlpreError(
                f"a window of {length} steps does not fit {store.path}, whose longest episode has {longest} frames: "
                f"give the encoder a window of at most {longest}"
            )
        self.store, self.length = store, length
        self._first, self._last = starts[store.episode], ends[store.episode]

    @property
    def full(self) -> Indices:
        """The rows at which a window has no padding."""
        return np.flatnonzero(np.arange(len(self.store)) - self._first >= self.length - 1)

    def sample(self, batch: int, rng: np.random.Generator) -> Indices:
        """Draws windows (batch, length) int64: rows as `FrameStore.sample` draws them, at random places of windows."""
        rows = self.store.sample(batch, rng)
        last = self._last[rows]
        full = np.minimum(self._first[rows] + self.length - 1, last)  # the first row at which a window is full
        return self.ending(np.clip(rows + rng.integers(self.length, size=batch), full, last))

    def ending(self, rows: Indices) -> Indices:
        """The windows (batch, length) int64 that end at ``rows`` (batch,), as a policy sees them there."""
        window = rows[:, None] + np.arange(1 - self.length, 1)
        return np.where(window < self._first[rows][:, None], PADDING, window)


def previous_actions(store: FrameStore, rows: Indices) -> Indices:
    """The action before each of ``rows`` (...), int64; ``NO_ACTION`` at an episode's first row and for ``PADDING``."""
    first = (rows == PADDING) | store.column("episode_start")[rows]
    return np.where(first, NO_ACTION, store.column("action")[rows - 1])


class Trajectories:
    """The inputs of a `rlpre.SequenceEncoder` at each row of a store, on a device.

    Raises:
        RlpreError: if the store's frames, actions or missions do not fit the encoder.
    """

    def __init__(self, store: FrameStore, encoder: Any, device: torch.device) -> None:
        try:
            encoder.frames.input.check(store.space)
        except RlpreError as error:
            raise RlpreError(f"the sequence encoder's vision does not fit {store.path}: {error}") from error
        if store.num_actions != encoder.actions:
            raise RlpreError(
                f"{store.path} holds {store.num_actions} actions, the sequence encoder reads {encoder.actions}: "
                "make an encoder for these trajectories"
            )
        self.store, self.encoder, self.device = store, encoder, device
        self._missions = None
        if encoder.vocabulary:
            if not store.missions or store.column("mission").min() < 0:
                raise RlpreError(
                    f"{store.path} has episodes without a mission, which the sequence encoder reads: give an encoder "
                    "without a vocabulary, or trajectories with missions"
                )
            self._missions = to_device(encoder.vocabulary.encode(store.missions), device)

    def features(self, rows: Indices) -> Tensor:
        """Vision features (..., F) float32 of the frames at ``rows`` (...); 0 for ``PADDING``.

        The frozen vision encoder encodes every distinct frame once, at the first call.
        """
        table, line = self._feature_table
        return table[to_device(line[rows], self.device)]

    @cached_property
    def _feature_table(self) -> tuple[Tensor, Indices]:
        """Features of the distinct frames, then a line of 0; and the line of each row, that of ``PADDING`` last."""
        store, encoder = self.store, self.encoder
        _, first = np.unique(store.ids, return_index=True)
        with torch.inference_mode(False):  # the features can be trained on even if the first caller is in this mode
            features = [
                encoder.encode_frames(store.decode(store.read(first[at : at + CHUNK]).to(encoder.device))).float()
                for at in range(0, len(first), CHUNK)
            ]
            table = torch.cat([*features, torch.zeros_like(features[0][:1])]).to(self.device)
        return table, np.append(store.ids, len(first))

    def inputs(self, rows: Indices) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """The arguments of ``encoder.forward`` for windows of ``rows`` (batch, steps); the last is no ``PADDING``.

        Returns:
            Features (batch, steps, F) float32, previous actions (batch, steps) int64, missions (batch, length) int64
            or None, and which steps are present (batch, steps) bool.
        """
        missions = None
        if self._missions is not None:
            missions = self._missions[
                to_device(self.store.column("mission")[rows[:, -1]].astype(np.int64), self.device)
            ]
        actions = to_device(previous_actions(self.store, rows), self.device)
        return self.features(rows), actions, missions, to_device(rows != PADDING, self.device)
