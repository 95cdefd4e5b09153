"""Claim 1: one pretraining serves many tasks.

The expert's action is probed in six worlds with one encoder, which was pretrained on all of them without labels.
"""

from pathlib import Path

import numpy as np

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import collect, distinct, fresh_cnn
from rlpre import Encoder, FrameStore, pretrain
from rlpre.evaluation.probes import Factor, cross_score
from rlpre.features import encode

LEVELS = (
    "MiniGrid-Empty-Random-6x6-v0",
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "BabyAI-GoToRedBallNoDists-v0",
    "BabyAI-GoToObj-v0",
)


def measure(directory: Path, seeds: int, steps: int = 250) -> Verdict:
    """The mean score over worlds above that of fresh weights, which are the control that matters."""
    frames = collect(directory / "frames", LEVELS, 9000)
    before, after = np.empty((2, seeds, len(LEVELS)))
    for seed in range(seeds):
        start = fresh_cnn(frames.decode(frames.read(range(512))), seed)
        settings = {"objective": "temporal+inverse", "steps": steps, "batch": 64, "seed": seed}
        trained = pretrain(frames, out=directory / f"{seed}", encoder=start, **settings)
        before[seed], after[seed] = _scores(frames, start), _scores(frames, trained.encoder)
    won = int((after.mean(0) > before.mean(0)).sum())
    measured = (
        f"probe of the expert's action, mean of {len(LEVELS)} worlds, above fresh weights; better in {won} of them"
    )
    return judge(after.mean(1), before.mean(1), 0.03, measured, "fresh weights")


def _scores(frames: FrameStore, encoder: Encoder) -> list[float]:
    rows, scores = distinct(frames), []
    for task in range(len(LEVELS)):
        own = rows[frames.column("task")[rows] == task]
        factor = Factor.from_labels("expert", frames.column("expert")[own])
        scores.append(cross_score(encode(encoder, frames, own[factor.places]).numpy(), factor))
    return scores


CLAIM = Claim(
    1,
    "One pretraining serves many tasks.",
    measure,
    "fresh weights, on the same tasks",
    answer_of("many"),
    "tasks in which fresh weights leave something to gain, see docs/headroom.md",
)
