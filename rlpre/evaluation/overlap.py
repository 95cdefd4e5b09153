"""Overlap: how much of a target do the frames of a pretraining contain, and what would pretraining gain without it?

`overlap` compares two stores in four ways: same true state, same layout, same observation, nearly the same observation.

`pure_gain` removes the effect of the overlap from a measured gain. It assumes that gains are linear in the overlap r,
gain(r) = pure + leak * r. Measured at several overlaps with all else equal, ``pure`` is the height of a line at r = 0.
Where all else is not equal, it is a difference in differences: seen items may be easier, and frames that contain them
may be better in general, so a clean pretraining and unseen items are measured too. Effects common to all items of a
pretraining, or to all pretrainings of an item, cancel. What remains assumes that without a leak one pretraining would
be ahead of the other by the same amount on all items.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F

from rlpre.data.store import FrameStore, Indices, digests
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.evaluation.stats import FEWEST, Interval, mean_interval, student
from rlpre.features import encode

Floats = npt.NDArray[np.float64]

CELLS = 2  # near-duplicates differ in at most so many cells
ALIKE = 0.95  # smallest cosine of frames that count as alike to an encoder
MOST = 20_000  # frames that an encoder compares with
CHUNK = 4096


@dataclass(frozen=True)
class Overlap:
    """Shares in [0, 1] of what episodes show that the frames contain: means over episodes, with Wilson's intervals."""

    state: Interval | None  # of an episode's steps in a state that the frames contain; None if states are unknown
    layout: (
        Interval | None
    )  # of episodes that begin in a state in which one of the frames' episodes began; None as above
    observation: Interval  # of steps with a frame that the frames contain
    near: tuple[Interval, ...]  # of steps with a frame at most 1, 2, .. cells away from one of them; empty for pixels
    alike: Interval | None  # of steps with a frame whose cosine with one is at least `ALIKE`; None without an encoder
    why_unknown: str  # the reason why states and layouts are unknown; empty if they are known
    seen: int  # distinct frames of the pretraining
    met: int  # distinct frames of the target

    @property
    def shares(self) -> dict[str, Interval | None]:
        """The shares by name, for tables; None where unknown. ``alike`` is left out without an encoder."""
        near = zip_longest(("1 cell apart", "2 cells apart"), self.near)
        alike = {f"cosine {ALIKE}": self.alike} if self.alike else {}
        return {"state": self.state, "layout": self.layout, "observation": self.observation, **dict(near), **alike}


def overlap(
    seen: FrameStore, met: FrameStore, states: tuple[Indices, Indices] | str, encoder: Encoder | None = None
) -> Overlap:
    """Measures how much of the episodes of the store ``met`` the store ``seen`` contains.

    Args:
        seen: frames of the pretraining.
        met: fresh episodes of the target, drawn in the same way.
        states: a number for each true state, at the rows of ``seen`` and of ``met``, both (N,); or the reason why they
            are unknown.
        encoder: compares frames by its features, standardised over ``met``; None: no such comparison. It compares with
            a sample of `MOST` distinct frames, so that the share is a lower bound for larger stores.

    Raises:
        RlpreError: if the frames differ in shape, or the encoder reads other frames, or was pretrained on ``seen`` and
            is therefore no independent judge.
    """
    if seen.space != met.space:
        raise RlpreError(f"{met.path} shows frames {met.space.shape}, {seen.path} {seen.space.shape}: give equal ones")
    tiles = _same_tiles(met, seen)
    ids, known_ids = (store.grid_ids if tiles else store.ids for store in (met, seen))
    rows, others = (np.unique(numbers, return_index=True)[1] for numbers in (ids, known_ids))
    if tiles:
        distance = nearest(met.codes(rows), seen.codes(others))
    else:
        known = set(_digests(seen, others))
        distance = np.array([digest not in known for digest in _digests(met, rows)], np.int64)
    begun = np.flatnonzero(met.column("episode_start"))
    steps = np.diff(np.append(begun, len(met)))

    def of_steps(hit: npt.NDArray[np.bool_]) -> Interval:
        """The share of each episode's steps; ``hit``: (N,) rows of ``met``."""
        return share(np.add.reduceat(hit.astype(np.float64), begun) / steps)

    alike = state = layout = None
    if encoder is not None:
        alike = of_steps(((distance == 0) | _alike(encoder, met, rows, seen, others))[ids])
    if not isinstance(states, str):
        before, now = states
        state = of_steps(np.isin(now, before))
        layout = share(np.isin(now[begun], before[seen.column("episode_start")]).astype(np.float64))
    return Overlap(
        state=state,
        layout=layout,
        observation=of_steps((distance == 0)[ids]),
        near=tuple(of_steps((distance <= cells)[ids]) for cells in range(1, CELLS + 1)) if tiles else (),
        alike=alike,
        why_unknown=states if isinstance(states, str) else "",
        seen=len(others),
        met=len(rows),
    )


def _same_tiles(met: FrameStore, seen: FrameStore) -> bool:
    """Whether equal cells look alike in both; otherwise pixels are compared."""
    if met.atlas is None or seen.atlas is None or met.palette != seen.palette:
        return False
    one, other = (getattr(atlas, "plain", atlas) for atlas in (met.atlas, seen.atlas))
    return bool(one.equals(other))


def share(shares: Floats) -> Interval:
    """The mean of (episodes,) shares in [0, 1] with Wilson's interval, which is valid for any distribution of them."""
    n, value = len(shares), float(shares.mean())
    if n < FEWEST:
        return Interval(value, None, None, n)
    z2 = float(student(np.inf)) ** 2 / n
    middle, margin = value + z2 / 2, math.sqrt(max(0.0, value * (1 - value)) * z2 + z2**2 / 4)
    return Interval(value, max(0.0, (middle - margin) / (1 + z2)), min(1.0, (middle + margin) / (1 + z2)), n)


def nearest(codes: npt.NDArray[np.uint8], others: npt.NDArray[np.uint8]) -> Indices:
    """The number of cells (n,) in which each frame (n, rows, columns, 3) differs from the most similar of others."""
    # one number per cell
    mine, theirs = (each.reshape(len(each), -1, 3) @ np.array([65536, 256, 1]) for each in (codes, others))
    search = NearestNeighbors(n_neighbors=1, metric="hamming", algorithm="brute").fit(theirs)
    found: Indices = np.rint(search.kneighbors(mine)[0][:, 0] * mine.shape[1]).astype(np.int64)
    return found


def _digests(store: FrameStore, rows: Indices) -> Iterator[bytes]:
    """A digest of each frame's pixels, however they are stored."""
    for at in range(0, len(rows), CHUNK):
        yield from digests(store.frames(rows[at : at + CHUNK]))


def _alike(
    encoder: Encoder, met: FrameStore, rows: Indices, seen: FrameStore, others: Indices
) -> npt.NDArray[np.bool_]:
    """Which ``rows`` of ``met`` have a cosine of at least `ALIKE` with one of ``others`` of ``seen``."""
    encoder.input.check(seen.space)
    if encoder.pretraining.get("frames") == seen.hash:
        raise RlpreError(
            f"the encoder was pretrained on {seen.path}, whose frames it should compare: give another, or none"
        )
    if len(others) > MOST:
        others = np.random.default_rng(0).choice(others, MOST, replace=False)
    now, before = encode(encoder, met, rows), encode(encoder, seen, others)
    mean, spread = now.mean(0), now.std(0, correction=0).clamp_min(torch.finfo(now.dtype).tiny)
    now, before = (F.normalize((features - mean) / spread, dim=1) for features in (now, before))
    highest = [(now[at : at + CHUNK] @ before.T).amax(1) for at in range(0, len(now), CHUNK)]
    alike: npt.NDArray[np.bool_] = (torch.cat(highest) >= ALIKE).numpy()
    return alike


def pure_gain(gains: Floats, overlap: Floats) -> dict[str, Interval]:
    """Removes the effect of the overlap from a gain.

    Args:
        gains: score with pretraining minus score without, by seed. (seeds, points) for several overlaps; or
            (seeds, pretrainings, groups of items), where the first pretraining is the one in question.
        overlap: of each point, or of each pretraining with each group, in [0, 1]; the shape of ``gains`` without the
            seeds. The simplest case, contaminated and clean on seen and unseen items, is [[1, 0], [0, 0]].

    Returns:
        "naive" (the gain as measured), "pure" (without overlap) and "leak" (the effect of full overlap): means over the
        points, or over the groups of the first pretraining.

    Raises:
        RlpreError: if the shapes do not fit, gains are not finite, overlaps are not in [0, 1], or the overlap cannot be
            separated from the effects of pretrainings and groups.
    """
    gains, overlap = np.asarray(gains, np.float64), np.asarray(overlap, np.float64)
    if overlap.ndim not in (1, 2) or gains.shape[1:] != overlap.shape or not len(gains):
        raise RlpreError(
            f"gains {gains.shape} and overlap {overlap.shape} do not fit: give (seeds, points) and (points,), or "
            "(seeds, pretrainings, groups) and (pretrainings, groups)"
        )
    if not np.isfinite(gains).all() or not ((overlap >= 0) & (overlap <= 1)).all():
        raise RlpreError("gains must be finite and overlaps shares in [0, 1]: leave out the runs that failed")
    own = overlap.copy()  # the part that pretrainings and groups do not explain
    for axis in range(overlap.ndim):
        own -= own.mean(axis, keepdims=True)
    if np.allclose(own, 0):
        raise RlpreError(
            f"overlaps {overlap.tolist()} say nothing about a leak: measure a clean pretraining too, on items that "
            "were seen and others that were not"
        )
    leak = (gains * own).sum(tuple(range(1, gains.ndim))) / (own**2).sum()
    asked, shares = (gains[:, 0], overlap[0]) if overlap.ndim == 2 else (gains, overlap)
    naive = asked.mean(axis=1)
    pure = naive - leak * shares.mean()
    return {"naive": mean_interval(naive), "pure": mean_interval(pure), "leak": mean_interval(leak)}
