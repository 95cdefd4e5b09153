"""Claim 3: parallel pairs let two views share one space of meaning.

Pairs show one state of a world twice. A policy is cloned on one view and acts on the other, without a further step.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import Clone, collect, distinct, fresh_cnn, mean_return
from rlpre import FrameStore, Vocabulary, align
from rlpre.encoders.sequence import MissionEmbedding
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives.align import recall

LEVEL = "BabyAI-GoToObj-v0"  # one room, one object of 18 kinds
LOOKS = {"day": {}, "night": {"palette": "night"}, "distracting": {"view": "distract"}, "top-down": {"view": "full"}}
STEPS, BATCH, FEATURES = 250, 64, 64
PAIRS = ("day - night", "day - distracting", "day - top-down", "symbols - day", "mission - top-down")


def measure(
    directory: Path,
    seeds: int,
    shuffled: bool = False,
    pairs: tuple[str, ...] = PAIRS,
    steps: int = STEPS,
    frames: int = 8000,
) -> Verdict:
    """The return of a policy on the view that it was not trained on; with ``shuffled`` pairs nothing is parallel."""
    stores = {name: collect(directory / name, LEVEL, frames, **look) for name, look in LOOKS.items()}
    rows = distinct(stores["top-down"])
    found = [_one_seed(stores, rows, seed, shuffled, pairs, steps) for seed in range(seeds)]
    scores = {name: [each[name] for each in found] for name in found[0]}
    returns, recalls = (
        ", ".join(f"{name.removeprefix(kind)} {np.mean(scores[name]):.2f}" for name in scores if name.startswith(kind))
        for kind in ("on ", "recall ")
    )
    own, unaligned = (show_interval(mean_interval(scores[name])) for name in ("own", "unaligned"))
    measured = (
        f"return of a clone of the day view on views of which it saw no label ({returns}), above encoders that were "
        f"aligned by wrong pairs; on its own view {own}, on encoders not aligned at all {unaligned}; recall@1 of 256 "
        f"states: {recalls}"
    )
    return judge(scores["swapped"], scores["mistaken"], 0.1, measured, "wrong pairs")


def _one_seed(
    stores: dict[str, FrameStore], rows: np.ndarray, seed: int, shuffled: bool, pairs: tuple[str, ...], steps: int
) -> dict[str, float]:
    """Recall by pairs, and the return of clones on their own view, swapped to another, and there by two controls.

    Wrong pairs are the harder one: a clone on encoders that were not aligned reads features that it has never met, and
    returns less than one whose features say nothing.
    """
    views = {name: store.decode(store.read(rows)) for name, store in stores.items()}
    day = stores["day"]
    vocabulary = Vocabulary.from_missions(day.missions)
    missions = torch.from_numpy(vocabulary.encode([day.missions[i] for i in day.column("mission")[rows]]))
    torch.manual_seed(seed)
    encoders: dict[str, nn.Module] = {
        "mission": nn.Sequential(MissionEmbedding(vocabulary, FEATURES), nn.LayerNorm(FEATURES)),
        "symbols": Symbols(day.codes(rows[:1]).size),
        **{name: fresh_cnn(frames, seed + 100 * place) for place, (name, frames) in enumerate(views.items())},
    }
    views |= {"mission": missions, "symbols": torch.from_numpy(day.codes(rows))}
    scores, swapped, unaligned, mistaken, own = {}, [], [], [], []
    for name in pairs:
        one, other = name.split(" - ")
        first, second, here, there = encoders[one], encoders[other], views[one], views[other]
        seen = len(rows) * 3 // 4  # the rest are other episodes
        shown = torch.randperm(seen) if shuffled else torch.arange(seen)
        learn = partial(align, first, second, steps=steps, batch=BATCH, seed=seed)
        aligned = learn((here[:seen], there[shown]))
        scores[f"recall {name}"] = recall(aligned, (here[seen:], there[seen:]), seed=seed)
        if one == "day":
            clone = Clone(aligned.first, day, rows, seed)
            own.append(mean_return(clone, LEVEL))
            for kept, encoder in ((swapped, aligned.second), (unaligned, second)):
                clone.encoder = encoder
                kept.append(mean_return(clone, LEVEL, **LOOKS[other]))
            wrong = learn((here[:seen], there[torch.randperm(seen)]))
            clone = Clone(wrong.first, day, rows, seed)
            clone.encoder = wrong.second
            mistaken.append(mean_return(clone, LEVEL, **LOOKS[other]))
            scores[f"on {other}"] = swapped[-1]
    means = {"swapped": swapped, "unaligned": unaligned, "mistaken": mistaken, "own": own}
    return scores | {name: float(np.mean(values)) for name, values in means.items()}


class Symbols(nn.Sequential):
    """Tile codes (batch, rows, columns, 3) uint8, each below 64, to features; for ``size`` numbers in all."""

    def __init__(self, size: int) -> None:
        super().__init__(nn.Linear(64 * size, 256), nn.ReLU(), nn.Linear(256, FEATURES), nn.LayerNorm(FEATURES))

    def forward(self, codes: Tensor) -> Tensor:
        return super().forward(F.one_hot(codes.flatten(1).long(), 64).flatten(1).float())


CLAIM = Claim(
    3,
    "Parallel pairs share one space of meaning: what reads one view reads the other.",
    measure,
    "a policy on encoders that were aligned by wrong pairs",
)
