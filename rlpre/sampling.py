"""Drawing rows of a frame store so that rare frames are not drowned."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rlpre.errors import RlpreError

Indices = npt.NDArray[np.int64]


class Balanced:
    """Draws from ``rows`` with weight (occurrences of the row's frame among them) ** -0.5."""

    def __init__(self, rows: Indices, ids: Indices) -> None:
        weights = np.bincount(ids)[ids] ** -0.5
        self.rows, self.cumulative = rows, np.cumsum(weights)

    def draw(self, batch: int, rng: np.random.Generator) -> Indices:
        """Rows (batch,) int64, with replacement."""
        points = rng.random(batch) * self.cumulative[-1]
        place = np.searchsorted(self.cumulative, points, side="right")
        drawn: Indices = self.rows[np.minimum(place, len(self.rows) - 1)]  # rounding can give the sum itself
        return drawn


class Pairs:
    """Samples (anchor, later, actions): later = anchor + j, 1 <= j <= k, same episode, another frame.

    Anchors are balanced as in `FrameStore.sample`, counted among possible anchors; j is uniform among those allowed.

    Args:
        ids: (N,) int64, the same number for identical frames.
        episode: (N,) int64, the same number for rows of one episode.
        action: (N,) whole numbers or (N, ...) vectors, taken at each row.
        k: most steps between the frames.
        where: the store, for messages.

    Raises:
        RlpreError: if k < 1 or no frame changes within k steps.
    """

    def __init__(self, ids: Indices, episode: Indices, action: npt.NDArray[Any], k: int, where: str) -> None:
        if k < 1:
            raise RlpreError(f"pairs are k >= 1 steps apart, got k={k}: choose for example k=5")
        allowed = np.zeros((len(ids), k), bool)
        for j in range(1, min(k, len(ids) - 1) + 1):
            allowed[:-j, j - 1] = (episode[j:] == episode[:-j]) & (ids[j:] != ids[:-j])
        rows = np.flatnonzero(allowed.any(axis=1))
        if not len(rows):
            raise RlpreError(f"no frame of {where} changes within {k} steps of an episode: collect livelier behaviour")
        if action.dtype.kind == "f":
            action = action.reshape(len(action), -1).astype(np.float32)
        self._allowed, self._action = allowed, action
        self._anchors = Balanced(rows, ids[rows])

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Indices, Indices, npt.NDArray[Any]]:
        """Draws pairs.

        Returns:
            Anchor rows and later rows, both (batch,) int64, and the actions from the one to the other: (batch, k)
            int64, -1 beyond the later row, or (batch, k, dims) float32, 0 beyond it.
        """
        anchor = self._anchors.draw(batch, rng)
        rank = self._allowed[anchor].cumsum(axis=1)
        chosen = np.floor(rng.random(batch) * rank[:, -1]).astype(np.int64) + 1
        later = anchor + 1 + (rank == chosen[:, None]).argmax(axis=1)
        rows = anchor[:, None] + np.arange(rank.shape[1])
        actions = self._action[np.minimum(rows, len(self._action) - 1)]
        actions[rows >= later[:, None]] = 0 if actions.dtype.kind == "f" else -1
        return anchor, later, actions
