"""Claim 2: filling in what is hidden teaches the grammar of a world.

The world is Unlock: one door in the wall, and one key of its colour. A model that knows how often each thing is in each
place, but no grammar, is the baseline: it cannot infer from the rest of the frame that the door must be behind a hidden
cell, or which colour it has. Scores are of hidden cells with an object, in layouts that were never seen.
"""

from pathlib import Path

import numpy as np

from agents.claims.cells import MaskedCells, fresh_encoder, score, solve, stored
from agents.claims.claim import Claim, Verdict, judge
from envs.minigrid.worlds import make_vec
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives.symbols import BACKGROUND

WORLD, LAYOUTS, HELD_OUT, TOGETHER = "MiniGrid-Unlock-v0", 4000, 1000, 50  # levels, of which so many are reset at once
STEPS, TILE = 200, 6  # of learning; pixels of a cell


def measure(directory: Path, seeds: int, shuffled: bool = False) -> Verdict:
    """The fall of the loss by grammar; ``shuffled`` takes it away from the frames that have it."""
    with_grammar, without, accuracy, places = [], [], [], []
    for seed in range(seeds):
        codes, new = (first_frames(count, 2 * seed + n) for n, count in enumerate((LAYOUTS, HELD_OUT)))
        rng = np.random.default_rng(seed)
        mixed = [exchanged(each, rng) for each in (codes, new)]
        nll, right = learnt(*(mixed if shuffled else (codes, new)), directory / f"{seed}", seed)
        with_grammar.append(-nll)
        accuracy.append(right)
        without.append(-learnt(*mixed, directory / f"{seed}-exchanged", seed)[0])
        places.append(frequency_loss(codes, new))
    measured = (
        "fall of the loss (nats) on hidden cells with an object, by what the rest of the frame says about them; "
        f"right in {show_interval(mean_interval(accuracy))} of them; the frequency of things in each place, alone, "
        f"gives a loss of {show_interval(mean_interval(places))}"
    )
    return judge(with_grammar, without, 0.2, measured, "cells exchanged between frames, -nats")


def first_frames(count: int, seed: int) -> np.ndarray:
    """Codes (count, rows, columns, 3) of whole levels."""
    venv = make_vec(WORLD, TOGETHER, seed, view="full")
    found = []
    for _ in range(count // TOGETHER):
        venv.reset()
        found.append(venv.codes)
    return np.concatenate(found)


def exchanged(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codes in which each cell comes from another frame: equally frequent in its place, and without any grammar."""
    cells = codes.reshape(len(codes), -1, 3)
    order = rng.permuted(np.tile(np.arange(len(codes))[:, None], cells.shape[1]), axis=0)
    return np.take_along_axis(cells, order[..., None], 0).reshape(codes.shape)


def learnt(codes: np.ndarray, new: np.ndarray, out: Path, seed: int) -> tuple[float, float]:
    """The loss and the accuracy on ``new`` frames of an encoder that learned to fill in ``codes``."""
    frames, held_out = (stored(each, out / name, TILE) for name, each in (("frames", codes), ("held-out", new)))
    encoder = fresh_encoder(frames, seed)
    objective = MaskedCells(encoder, frames)
    solve(objective, encoder, frames, STEPS, seed, frozen=False)
    return score(objective, encoder, held_out, seed)


def frequency_loss(codes: np.ndarray, new: np.ndarray) -> float:
    """The loss on cells with an object, if all that is known is how often a thing is in a place."""
    numbers, others = (each.reshape(len(each), -1, 3).astype(np.int64) @ (4096, 64, 1) for each in (codes, new))
    equal = np.stack([(numbers[:, place, None] == others[:, place]).sum(0) for place in range(numbers.shape[1])], 1)
    objects = new.reshape(*others.shape, 3)[..., 0] >= BACKGROUND
    return float(-np.log((equal[objects] + 1) / (len(codes) + 1)).mean())


CLAIM = Claim(
    2,
    "Filling in what is hidden teaches the grammar of a world.",
    measure,
    "the same, on frames whose cells are exchanged between frames: as frequent in each place, without grammar",
)
