"""Can an objective be solved by a shortcut? Trivial answers to every objective, on real frames.

Each shortcut is tried on a naive form of the task, where it must work, and on the task as it is, where it must be right
much less often than that, and than one can be.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import envs
from rlpre import Encoder, FrameStore, InputSpec, SequenceEncoder
from rlpre.data.store import Indices
from rlpre.objectives import OBJECTIVES
from rlpre.objectives.batches import WindowReader
from rlpre.objectives.jigsaw import SIDE, Jigsaw
from rlpre.objectives.losses import info_nce, random_shift
from rlpre.objectives.masked import hide, nearest_step
from rlpre.objectives.symbols import BACKGROUND, foreground, mean_where

GAP = 5  # steps between the frames of a pair, as in pretraining
WINDOW = 32
MARGIN = 0.15


class Leak(NamedTuple):
    """How often a shortcut is right on the naive task and on the real one, and how often one can be right there."""

    naive: float
    real: float
    best: float = 1.0


def found_by_pixels(
    store: FrameStore, now: Indices, later: Indices, change: Callable[[Tensor], Tensor] = lambda frames: frames
) -> float:
    """How often the most similar of all later frames is the right one."""
    query, key = (change(torch.from_numpy(store.frames(rows))).flatten(1).float() for rows in (now, later))
    ids = (torch.from_numpy(store.ids[rows]) for rows in (now, later))
    return float(info_nce(query - query.mean(0), key - key.mean(0), *ids)[1]["accuracy"])


def usual(keys: Sequence[Hashable], answers: Sequence[Hashable]) -> list[Hashable]:
    """For the keys of the second half of the examples, the most frequent answer in the first half; else None."""
    half, known = len(keys) // 2, defaultdict[Hashable, Counter[Hashable]](Counter)
    for key, answer in zip(keys[:half], answers[:half], strict=True):
        known[key][answer] += 1
    return [known[key].most_common(1)[0][0] if key in known else None for key in keys[half:]]


def remembered(keys: Sequence[Hashable], answers: Sequence[Hashable]) -> float:
    """How often it is right."""
    return float(np.mean([a == b for a, b in zip(usual(keys, answers), answers[len(keys) // 2 :], strict=True)]))


def present_frame(store: FrameStore, path: Path) -> Leak:
    """The frame does not change: true of most steps, but the frames of a pair differ."""
    rng = np.random.default_rng(0)
    step = rng.choice(np.flatnonzero(store.acted), 256, replace=False)
    now, later, _ = store.pairs(GAP).sample(256, rng)
    return Leak(found_by_pixels(store, step, step + 1), found_by_pixels(store, now, later))


def present_frame_of_a_window(store: FrameStore, path: Path) -> Leak:
    """Windows contain steps that change nothing, but the frame asked for is up to ``GAP`` steps ahead."""
    rng, hits = np.random.default_rng(0), []
    for ahead in range(1, GAP + 1):
        inside = np.flatnonzero(store.episode[:-ahead] == store.episode[ahead:])
        now = rng.choice(inside, 256, replace=False)
        hits.append(found_by_pixels(store, now, now + ahead))
    return Leak(hits[0], float(np.mean(hits)))


def same_pixels(store: FrameStore, path: Path) -> Leak:
    """Without shifts the other view of a frame is the frame itself."""
    torch.manual_seed(0)
    rows = store.sample(256, np.random.default_rng(0))
    return Leak(found_by_pixels(store, rows, rows), found_by_pixels(store, rows, rows, random_shift))


def policy(store: FrameStore, path: Path) -> Leak:
    """A deterministic policy's action is known from the frame alone."""
    expert = envs.collect("MiniGrid-DoorKey-5x5-v0", path, 1000, seed=0, behaviour="expert:0")
    scores = []
    for frames in (expert, store):
        now, later, action = frames.pairs(GAP).sample(8000, np.random.default_rng(0))
        before, after, taken = frames.ids[now].tolist(), frames.ids[later].tolist(), action[:, 0].tolist()
        both = list(zip(before, after, (later - now).tolist(), strict=True))
        scores.append((remembered(before, taken), remembered(both, taken)))
    return Leak(scores[0][0], *scores[1])


def usual_change(store: FrameStore, path: Path) -> Leak:
    """Most pixels of the next frame are those of the present one, but not where it changes; an action says little."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(store.acted))
    copied = float((store.frames(rows[:1000]) == store.frames(rows[:1000] + 1)).mean())
    rows = rows[store.ids[rows] != store.ids[rows + 1]][:1000]
    first = np.unique(store.ids, return_index=True)[1]
    now, later = (store.frames(at).astype(float) for at in (rows, rows + 1))
    action, half = store.column("action")[rows], len(rows) // 2
    keys = list(zip(store.ids[rows].tolist(), action.tolist(), strict=True))
    found = usual(keys, store.ids[rows + 1].tolist())

    def explained(of: np.ndarray, guess: np.ndarray) -> float:
        return 1 - float(((of - guess) ** 2).mean() / of.var(0).mean())

    seen = np.array([answer is not None for answer in found])
    change, asked = later - now, np.flatnonzero(seen) + half
    means = {each: change[:half][action[:half] == each].mean(0) for each in np.unique(action[:half])}
    by_action = np.stack([means[each] for each in action[half:]])
    known = store.frames(first[[answer for answer in found if answer is not None]]) - now[asked]
    return Leak(copied, explained(change[half:], by_action), explained(change[asked], known))


def usual_cell(store: FrameStore, path: Path) -> Leak:
    """What a cell usually shows is right for most cells, but not for those with an object."""
    codes = store.codes(store.sample(4000, np.random.default_rng(0))).astype(int)
    symbols = (codes @ (1, 1 << 8, 1 << 16)).reshape(len(codes), -1)
    right = symbols == [np.bincount(cell).argmax() for cell in symbols.T]
    objects = codes[..., 0].reshape(right.shape) >= BACKGROUND
    return Leak(right.mean(), right[objects].mean())


def last_frame(store: FrameStore, path: Path) -> Leak:
    """Most cells stay the same, but objects move with every turn; action and frame determine where."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(store.acted))
    first = np.unique(store.ids, return_index=True)[1]
    keys = list(zip(store.ids[rows].tolist(), store.column("action")[rows].tolist(), strict=True))
    known = usual(keys, store.ids[rows + 1].tolist())
    asked = rows[len(rows) // 2 :]
    best = np.array([row if answer is None else first[answer] for row, answer in zip(asked, known, strict=True)])
    later = store.codes(asked + 1)
    copied, known = ((store.codes(answer) == later).all(-1) for answer in (asked, best))
    objects = later[..., 0] >= BACKGROUND
    return Leak(copied.mean(), copied[objects].mean(), known[objects].mean())


def nearest_in_time(store: FrameStore, path: Path) -> Leak:
    """Single hidden cells, as in BERT, are visible a step before or after."""
    torch.manual_seed(0)
    vision = Encoder("cnn", InputSpec(store.space.shape), features=8)
    encoder = SequenceEncoder("gru", vision, store.num_actions, width=8, window=WINDOW)
    batch = WindowReader(store, encoder).draw(200, np.random.default_rng(0))
    there = batch.present[..., None, None]
    scores = []
    for hidden in ((torch.rand(batch.codes.shape[:-1]) < 0.15) & there, hide(batch.codes, batch.present)[0]):
        right = (nearest_step(batch.codes, ~hidden & there) == batch.codes).all(-1)
        scores.append(float(mean_where(right, foreground(batch.codes) & hidden)))
    return Leak(*scores)


def in_order(store: FrameStore, cost: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """How often the order of lowest cost is right, for halves of a frame that touch, and for the tiles as they are.

    ``cost`` rates tiles (batch, n, C + 1, h, w) put in an order; their last channel is the phase of the grid lines,
    given alone for a frame with its tiles in their places.
    """
    torch.manual_seed(0)
    frames = torch.from_numpy(store.frames(store.sample(200, np.random.default_rng(0))))
    side = torch.arange(frames.shape[2]) % store.cell
    phase = (side[:, None] * store.cell + side).to(torch.uint8).expand(len(frames), 1, -1, -1)
    jigsaw, scores = Jigsaw(Encoder("cnn", InputSpec(store.space.shape), features=8), store), []
    for cell, tile in ((1, tuple(pixels // SIDE for pixels in frames.shape[2:])), (jigsaw.cell, jigsaw.tile)):
        jigsaw.cell, jigsaw.tile = cell, tile
        shown, right = jigsaw.shuffle(torch.cat([frames, phase], 1))
        laid = [shown[:, order] for order in jigsaw.orders.argsort(1)]
        empty = jigsaw.cut(phase[:1])
        answer = torch.stack([cost(tiles.float(), empty) for tiles in laid], 1).argmin(1)
        scores.append(float(right.gather(1, answer[:, None]).float().mean()))
    return scores[0], scores[1]


def grid_lines(store: FrameStore, path: Path) -> Leak:
    """If tiles are cut across cells, the phase of the grid lines gives their place away."""
    return Leak(*in_order(store, lambda tiles, empty: (tiles[:, :, -1] - empty[:, :, -1]).abs().flatten(1).mean(1)))


def edges(store: FrameStore, path: Path) -> Leak:
    """The edges of tiles that touched continue in each other."""

    def gap(tiles: Tensor, empty: Tensor) -> Tensor:
        square = tiles[:, :, :-1].unflatten(1, (SIDE, SIDE))
        across = square[:, :, :-1, ..., -1] - square[:, :, 1:, ..., 0]
        down = square[:, :-1, ..., -1, :] - square[:, 1:, ..., 0, :]
        return sum(step.abs().flatten(1).mean(1) for step in (across, down))

    return Leak(*in_order(store, gap))


LEAKS: dict[str, list[Callable[[FrameStore, Path], Leak]]] = {
    "autoregressive": [last_frame],
    "change": [usual_change],
    "contrastive": [same_pixels],
    "cpc": [present_frame_of_a_window],
    "forward": [present_frame],
    "inverse": [policy],
    "jigsaw": [grid_lines, edges],
    "masked": [nearest_in_time],
    "supervised": [usual_cell],
    "temporal": [present_frame],
}


@pytest.mark.parametrize("name", [name for name, kind in OBJECTIVES.items() if kind.__module__.startswith("rlpre.")])
def test_no_shortcut_works(name: str, doorkey: FrameStore, tmp_path: Path) -> None:
    assert LEAKS.get(name), f"add a shortcut for objective {name!r} to LEAKS"
    for shortcut in LEAKS[name]:
        leak = shortcut(doorkey, tmp_path / "expert")
        assert leak.naive > 0.5
        assert leak.real < leak.naive - MARGIN
        assert leak.real < leak.best - MARGIN
