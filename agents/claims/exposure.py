"""Claim 23: teacher forcing leaves exposure bias: a clone errs more in its own states than in the expert's."""

from pathlib import Path

import numpy as np

from agents.claims.claim import RESULTS, Claim, Verdict, judge
from agents.claims.tools import TILE, Clone, distinct, fresh_cnn
from envs import demonstrations
from envs.minigrid.render import atlas
from envs.minigrid.trials import ExpertActor, Trial, layout_seeds, play

LEVEL, EPISODES = "MiniGrid-DoorKey-6x6-v0", 100


def measure(directory: Path, seeds: int, own: bool = True, episodes: int = EPISODES) -> Verdict:
    """The clone's errors in its own states above those in the expert's; without ``own`` both are the expert's."""
    in_own, in_expert = [], []
    tests = layout_seeds(LEVEL, "test", 40)
    for seed in range(seeds):
        frames = demonstrations(LEVEL, directory / f"{seed}", episodes, seed, tile_size=TILE)
        rows = distinct(frames)
        clone = Clone(fresh_cnn(frames.decode(frames.read(rows)), seed), frames, rows, seed)
        for errors, actor in ((in_expert, ExpertActor()), (in_own, clone if own else ExpertActor())):
            errors.append(_errors(clone, play(LEVEL, tests, actor, tile_size=TILE)))
    measured = (
        f"probability of another action than the expert's, own states above the expert's ({episodes} episodes cloned)"
    )
    return judge(in_own, in_expert, 0.02, measured, "expert's states")


def _errors(clone: Clone, trials: list[Trial]) -> float:
    frames = np.concatenate([atlas(TILE).decode(trial.codes[:-1]) for trial in trials])
    advice = np.concatenate([trial.advice for trial in trials])
    return 1 - clone.agreement(frames[advice >= 0], advice[advice >= 0])


CLAIM = Claim(
    23,
    "Teacher forcing leaves exposure bias.",
    measure,
    "the same clone in the expert's states",
    (RESULTS / "exposure" / "table.md").read_text().split("\n")[0].removeprefix("- ") + " (results/exposure)",
)
