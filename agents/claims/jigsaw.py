"""Claim 9: solving jigsaw puzzles teaches what is where in a scene."""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import collect
from rlpre import pretrain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval

LEVEL, FRAMES = "MiniGrid-DoorKey-6x6-v0", 6000


def measure(directory: Path, seeds: int, steps: int = 250) -> Verdict:
    """The mean score of linear probes above that of the weights that pretraining started from."""
    frames, settings = collect(directory / "frames", LEVEL, FRAMES, view="full"), {"features": 64, "batch": 64}
    results = [
        pretrain(frames, out=directory / f"{seed}", objective="jigsaw", steps=steps, seed=seed, **settings)
        for seed in range(seeds)
    ]
    before, after = ([np.mean([*getattr(each, part).values()]) for each in results] for part in ("control", "probes"))
    solved, chance = (
        show_interval(mean_interval([each.metrics.get(f"jigsaw/{name}", np.nan) for each in results]))
        for name in ("accuracy", "chance")
    )
    measured = f"mean score of linear probes above fresh weights; puzzles solved {solved}, by chance {chance}"
    return judge(after, before, 0.03, measured, "fresh weights")


CLAIM = Claim(
    9,
    "Jigsaw puzzles teach visual common sense.",
    measure,
    "probes of fresh weights",
    answer_of("full", "jigsaw-frozen"),
    "labels that ask which part of a scene is where; those of these worlds ask what is near the agent",
)
