"""Overlap: how much of what is met in a target do the frames of a pretraining hold?

It is looked for in four ways: the same true state, the same layout, the same observation, and one nearly the same (few
cells differ, or an independent encoder hardly tells them apart). What it did to a result is asked in
`rlpre.measure.contamination`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore, digests
from rlpre.measure.probe import encode
from rlpre.measure.stats import FEWEST, Interval, student
from rlpre.sampling import Indices

CELLS = 2  # most cells in which near-duplicates differ; the work grows with the frame's cells to this power
ALIKE = 0.95  # least cosine of frames that an encoder hardly tells apart
MOST = 20_000  # frames that an encoder compares with
CHUNK = 4096

_BITS = np.array([9, 6, 0])  # where type, colour and flags of a cell stand in its symbol
_SYMBOLS = 1 << 13
_SLOTS = 20  # bits of a hash that are looked at first


@dataclass(frozen=True)
class Overlap:
    """Shares in [0, 1] of what episodes meet that the frames hold: means over episodes.

    Intervals are Wilson's, which hold for whatever shares in [0, 1] episodes may have and always have a width.

    Attributes:
        state: of an episode's steps, in a state that the frames hold; None if it cannot be told.
        layout: of episodes, those that begin as one of the frames' episodes did; None as above.
        observation: of steps, with a frame that the frames hold.
        near: of steps, with a frame that differs from one of them in at most 1, 2, .. cells; empty for pixels.
        alike: of steps, with a frame whose cosine with one of them is at least `ALIKE`; None without an encoder.
        untold: why states and layouts cannot be told; empty if they can.
        seen: how many distinct frames there are.
        met: how many distinct ones were met.
    """

    state: Interval | None
    layout: Interval | None
    observation: Interval
    near: tuple[Interval, ...]
    alike: Interval | None
    untold: str
    seen: int
    met: int


def overlap(
    seen: FrameStore, met: FrameStore, states: tuple[Indices, Indices] | str, encoder: Encoder | None = None
) -> Overlap:
    """What the store ``seen`` holds of the episodes of the store ``met``.

    Args:
        seen: what was pretrained on.
        met: fresh episodes of the target, with frames that look the same.
        states: one number for each true state, at the rows of ``seen`` and of ``met``, both (N,); or why they are
            unknown.
        encoder: judges likeness, by features standardised over what was met; None: nobody does. Of more than `MOST`
            distinct frames it compares with so many, so that its share is the least that there is.

    Raises:
        RlpreError: if the frames differ in shape, or the encoder reads others, or learned from ``seen``: it would judge
            its own case.
    """
    if seen.space != met.space:
        raise RlpreError(f"{met.path} shows frames {met.space.shape}, {seen.path} {seen.space.shape}: give equal ones")
    rows = [np.unique(store.ids, return_index=True)[1] for store in (met, seen)]
    tiles = met.atlas is not None and seen.atlas is not None
    if tiles:
        apart = nearest(met.codes(rows[0]), seen.codes(rows[1]))
    else:
        known = set(_marks(seen, rows[1]))
        apart = np.array([mark not in known for mark in _marks(met, rows[0])], np.int64)
    begun = np.flatnonzero(met.column("episode_start"))
    steps = np.diff(np.append(begun, len(met)))

    def share_of(hit: npt.NDArray[np.bool_]) -> Interval:
        """Of an episode's steps, given which distinct frames count."""
        return share(np.add.reduceat(hit[met.ids].astype(np.float64), begun) / steps)

    alike = None
    if encoder is not None:
        alike = share_of((apart == 0) | _alike(encoder, met, rows[0], seen, rows[1]))
    state = layout = None
    if not isinstance(states, str):
        before, now = states
        state = share(np.add.reduceat(np.isin(now, before).astype(np.float64), begun) / steps)
        layout = share(np.isin(now[begun], before[seen.column("episode_start")]).astype(np.float64))
    return Overlap(
        state=state,
        layout=layout,
        observation=share_of(apart == 0),
        near=tuple(share_of(apart <= cells) for cells in range(1, CELLS + 1)) if tiles else (),
        alike=alike,
        untold=states if isinstance(states, str) else "",
        seen=len(rows[1]),
        met=len(rows[0]),
    )


def share(shares: npt.NDArray[np.float64]) -> Interval:
    """The mean of (episodes,) shares in [0, 1] with Wilson's interval."""
    n, value = len(shares), float(shares.mean())
    if n < FEWEST:
        return Interval(value, None, None, n)
    z2 = float(student(np.inf)) ** 2 / n
    middle, margin = value + z2 / 2, math.sqrt(max(0.0, value * (1 - value)) * z2 + z2**2 / 4)
    return Interval(value, max(0.0, (middle - margin) / (1 + z2)), min(1.0, (middle + margin) / (1 + z2)), n)


def nearest(codes: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8], most: int = CELLS) -> Indices:
    """In how many cells each frame differs from the most similar of others, ``most`` + 1 if in more than ``most``.

    Two frames differ in at most k cells if they agree without some k of them. A frame's hash is a sum over its cells,
    so that leaving cells out is a subtraction; 64 bits take two of 10^6 frames for equal once in 10^7 times.

    Args:
        codes: (n, rows, columns, 3) uint8.
        others: (m, rows, columns, 3) uint8.
        most: cells; the work grows with the number of cells to this power.

    Returns:
        (n,) int64.
    """
    cells = codes[0, ..., 0].size
    table = np.random.default_rng(0).integers(2**64, size=(cells, _SYMBOLS), dtype=np.uint64)
    mine, theirs = _parts(codes, table), _parts(others, table)
    whole, all_theirs = mine.sum(0), theirs.sum(0)
    found = np.full(len(codes), most + 1)
    for distance in range(most + 1):
        for hidden in combinations(range(cells), distance):
            left = np.flatnonzero(found > distance)
            key, keys = whole[left], all_theirs.copy()
            for cell in hidden:
                key -= mine[cell, left]
                keys -= theirs[cell]
            found[left[_among(key, keys)]] = distance
    return found


def _parts(codes: npt.NDArray[np.uint8], table: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """(cells, n): what each cell adds to the hash of its frame."""
    symbols = (codes.reshape(len(codes), -1, 3).astype(np.uint16) << _BITS).sum(-1)
    return np.stack([row[column] for row, column in zip(table, symbols.T, strict=True)])


def _among(keys: npt.NDArray[np.uint64], many: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of few keys are among many: only those whose first bits some key has are compared at all."""
    known = np.zeros(1 << _SLOTS, bool)
    known[keys >> (64 - _SLOTS)] = True
    return np.isin(keys, many[known[many >> (64 - _SLOTS)]])


def _marks(store: FrameStore, rows: Indices) -> Iterator[bytes]:
    """Of each frame's pixels, however they are stored."""
    for at in range(0, len(rows), CHUNK):
        yield from digests(store.frames(rows[at : at + CHUNK]))


def _alike(
    encoder: Encoder, met: FrameStore, rows: Indices, seen: FrameStore, others: Indices
) -> npt.NDArray[np.bool_]:
    """Which ``rows`` of ``met`` have a cosine of at least `ALIKE` with one of ``others`` of ``seen``."""
    encoder.input.check(seen.space)
    if encoder.pretraining.get("frames") == seen.hash:
        raise RlpreError(f"the encoder learned from {seen.path}, whose frames it is to compare: give another, or none")
    if len(others) > MOST:
        others = np.random.default_rng(0).choice(others, MOST, replace=False)
    now, before = encode(encoder, met, rows), encode(encoder, seen, others)
    mean, spread = now.mean(0), now.std(0, correction=0).clamp_min(torch.finfo(now.dtype).tiny)
    now, before = (F.normalize((features - mean) / spread, dim=1) for features in (now, before))
    highest = [(now[at : at + CHUNK] @ before.T).amax(1) for at in range(0, len(now), CHUNK)]
    alike: npt.NDArray[np.bool_] = (torch.cat(highest) >= ALIKE).numpy()
    return alike
