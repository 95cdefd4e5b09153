"""Demonstrations in memory: whole episodes, padded and batched by length, their frames encoded once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.policy import NONE
from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.device import ship
from rlpre.sequences import Trajectories

HELD_OUT = 0.1  # of the layouts, to stop early by
LAYOUTS = 2**15  # values that a layout's hash can take
POOL = 16  # batches that are drawn together and cut by length, so that little is padding


@dataclass(frozen=True)
class Batch:
    """Steps of episodes on one device: (N,) one after the other, or (B, T) padded on the right.

    Attributes:
        features: (..., F) of the frames.
        previous: (...) int64, the action before each step; -1 at an episode's first.
        mission: (N, L) or (B, L) int64, or None.
        label: (...) int64, what the expert would do; -1 where that is not known.
        present: (...) bool, False where there is padding.
    """

    features: Tensor
    previous: Tensor
    mission: Tensor | None
    label: Tensor
    present: Tensor


@dataclass(frozen=True)
class Episodes:
    """Demonstrations as an encoder sees them.

    Attributes:
        steps: (N,) of all episodes, one after the other.
        lengths: (E,) steps of each episode.
        layout: (E,) in [0, ``LAYOUTS``), the same for episodes in the same layout.
    """

    steps: Batch
    lengths: np.ndarray
    layout: np.ndarray

    @classmethod
    def read(cls, store: FrameStore, encoder: SequenceEncoder) -> "Episodes":
        """The demonstrations of a store, on the encoder's device.

        Raises:
            RlpreError: if the store has no expert's labels, or its frames, actions or missions are not those that the
                encoder was built for.
        """
        for name in ("expert", "layout"):
            if name not in store.labels:
                raise RlpreError(f"{store.path} has no label {name!r}: record it with envs.demonstrations")
        rows, device = np.flatnonzero(store.acted), encoder.device
        label, first = store.column("expert")[rows].astype(np.int64), store.column("episode_start")[rows]
        if not (label >= 0).any():
            raise RlpreError(f"the expert labels no step of {store.path}: record a level that it can solve")
        features, previous, mission, present = Trajectories(store, encoder, device).inputs(rows[:, None])
        steps = Batch(features[:, 0], previous[:, 0], mission, ship(label, device), present[:, 0])
        lengths = np.diff(np.append(np.flatnonzero(first), len(rows)))
        return cls(steps, lengths, store.column("layout")[rows][first].astype(np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __add__(self, other: "Episodes") -> "Episodes":
        a, b = self.steps, other.steps
        mission = None if a.mission is None or b.mission is None else torch.cat([a.mission, b.mission])
        features, previous, label, present = (
            torch.cat([getattr(a, name), getattr(b, name)]) for name in ("features", "previous", "label", "present")
        )
        steps = Batch(features, previous, mission, label, present)
        lengths, layout = (np.append(getattr(self, name), getattr(other, name)) for name in ("lengths", "layout"))
        return Episodes(steps, lengths, layout)

    @property
    def labels(self) -> int:
        """How many steps the expert labelled."""
        return int((self.steps.label != NONE).sum())

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Episodes to learn from and episodes to stop early by, in other layouts.

        Raises:
            RlpreError: if there are too few.
        """
        rank = np.random.default_rng(0).random(LAYOUTS)[self.layout]  # a layout keeps its side if others are added
        held_out = rank <= np.sort(rank)[int(HELD_OUT * len(self))]
        if held_out.all():
            raise RlpreError(
                f"{len(self)} episodes in {len(np.unique(rank))} layouts are too few to hold some out: record more"
            )
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def batch(self, episodes: np.ndarray) -> Batch:
        """These episodes (B,), padded to the longest."""
        lengths, steps = self.lengths[episodes], self.steps
        first = np.cumsum(self.lengths)[episodes] - lengths
        place = np.arange(lengths.max())
        present = ship(place < lengths[:, None], steps.features.device)
        rows = ship(first[:, None] + np.minimum(place, lengths[:, None] - 1), steps.features.device)
        mission = None if steps.mission is None else steps.mission[rows[:, 0]]
        label = steps.label[rows].masked_fill(~present, NONE)
        return Batch(steps.features[rows], steps.previous[rows], mission, label, present)

    def batches(self, among: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Endless batches of episodes of about one length; each pass shows every one once."""
        while True:
            order = rng.permutation(among)
            for at in range(0, len(order), POOL * size):
                pool = order[at : at + POOL * size]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                for first in rng.permutation(np.arange(0, len(pool), size)):
                    yield self.batch(pool[first : first + size])
