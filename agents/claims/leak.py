"""Claim 6: a puzzle that can be cheated teaches less; the stronger claim, that it teaches nothing, is measured beside.

The puzzle is to fill in hidden cells of a frame. If the frame before is shown, answers can be copied from it; if it is
hidden too, they must be inferred. What a puzzle taught its encoder is measured on the second one, with a new head.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import envs
from agents.claims.cells import MaskedCells, fresh_encoder, score, solve, stored
from agents.claims.claim import Claim, Verdict, judge
from rlpre import Encoder, FrameStore
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives.symbols import BACKGROUND

WORLD, BEHAVIOUR = "MiniGrid-DoorKey-6x6-v0", "0.5*random + 0.5*expert:0.3"
FRAMES, TILE = 6000, 6  # collected to learn from; pixels of a cell: two frames of 7 x 7 cells are 84 x 42
STEPS, HEAD_STEPS = 150, 80  # of the puzzle, and of the new head on the frozen encoder


class HiddenBefore(MaskedCells):
    """Frames that hold the frame before in their upper half: cells of the lower half are asked for."""

    shows_before = False

    def hide(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `MaskedCells.hide`."""
        hidden, _ = super().hide(codes)
        lower = (torch.arange(codes.shape[1]) >= codes.shape[1] // 2)[:, None].expand_as(hidden)
        return hidden & lower, ~hidden & lower | ~lower if self.shows_before else ~hidden & lower


class ShownBefore(HiddenBefore):
    """The same with the frame before: the puzzle that can be cheated."""

    shows_before = True


def measure(directory: Path, seeds: int, cheated: bool = False) -> Verdict:
    """How much more the honest puzzle teaches; ``cheated`` puts the other one in its place."""
    stores = [pairs(directory / name, FRAMES, seed) for seed, name in enumerate(("learn", "held-out"))]
    honest = ShownBefore if cheated else HiddenBefore
    taught, copied, fresh = (
        [-loss_after(kind, *stores, seed) for seed in range(seeds)] for kind in (honest, ShownBefore, None)
    )
    copy, majority = leak(stores[1])
    still = mean_interval(np.subtract(copied, fresh))
    measured = (
        "fall of the loss (nats) on hidden cells with an object by a puzzle without a leak, over one with; copying the "
        f"frame before is right in {copy:.2f} of these cells, the most frequent answer in {majority:.2f}: a leak of "
        f"{copy - majority:.2f}; the puzzle with the leak still gains {show_interval(still)} nats over fresh weights"
    )
    return judge(taught, copied, 0.05, measured, "puzzle with the leak, -nats")


def pairs(path: Path, steps: int, seed: int) -> FrameStore:
    """Each frame below the one before it."""
    frames = envs.collect(WORLD, path.with_name(f"{path.name}-single"), steps, seed, BEHAVIOUR)
    before = np.flatnonzero(frames.acted)
    return stored(np.concatenate([frames.codes(before), frames.codes(before + 1)], axis=1), path, TILE)


def loss_after(kind: type[MaskedCells] | None, frames: FrameStore, held_out: FrameStore, seed: int) -> float:
    """The loss of a new head on the honest puzzle, behind an encoder that learned from a puzzle, or from none."""
    encoder: Encoder = fresh_encoder(frames, seed)
    if kind:
        solve(kind(encoder, frames), encoder, frames, STEPS, seed, frozen=False)
    honest = HiddenBefore(encoder, frames)
    solve(honest, encoder, frames, HEAD_STEPS, seed, frozen=True)
    return score(honest, encoder, held_out, seed)[0]


def leak(frames: FrameStore) -> tuple[float, float]:
    """Of cells with an object: the share that the frame before shows too, and that of the most frequent one."""
    before, now = np.split(frames.codes(np.unique(frames.ids, return_index=True)[1]), 2, axis=1)
    objects = now[..., 0] >= BACKGROUND
    _, counts = np.unique(now[objects], axis=0, return_counts=True)
    return float((before == now).all(-1)[objects].mean()), float(counts.max() / counts.sum())


CLAIM = Claim(
    6,
    "A puzzle that can be cheated teaches less than the same puzzle without the leak.",
    measure,
    "the same puzzle with the leak: the frame before is shown",
)
