"""Claim 25: pretraining on the wrong source harms, and stopping it early limits the harm.

The source shows other rooms, by night and with shuffled actions; the task is by day. Encoders are kept on the way. The
one that scores best on validation layouts of the task is compared with the last one, on test layouts.
"""

from pathlib import Path

import numpy as np

import envs
from agents.claims.cells import copied, fresh_encoder
from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.curves import draw_curves
from agents.transfer import TEST, VALIDATION, LabelsConfig, load_task, record_labels, score_labels, shuffle_actions
from rlpre import Encoder, FrameStore, pretrain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.pretrain import step_directory
from rlpre.sb3.policy import MODES

SOURCES, TASK, FRAMES = ("MiniGrid-DoorKey-6x6-v0", "MiniGrid-Unlock-v0"), "MiniGrid-DoorKey-8x8-v0", 6000
BEHAVIOUR = "0.5*random + 0.5*expert:0.3"
CHECKPOINTS = (0, 10, 30, 100)  # updates; at 0 are fresh weights
PRETRAINING = {"objective": "temporal+inverse", "batch": 64, "device": "cpu"}
FEW = LabelsConfig(labels=200, episodes=80, steps=150, device="cpu")


def measure(directory: Path, seeds: int, checkpoints: tuple[int, ...] = CHECKPOINTS) -> Verdict:
    """The gain of the chosen checkpoint over the last one; with only one of ``checkpoints`` there is no choice."""
    collected = envs.collect(SOURCES, directory / "collected", FRAMES, 0, BEHAVIOUR, palette="night")
    frames = copied(shuffle_actions(collected, directory / "shuffled", 0), directory / "source")
    record_labels(TASK, directory, FEW, {})
    chosen, stops, tests, scratch = [], [], [], []
    for seed in range(seeds):
        validation, test = (scores(frames, directory, part, seed, checkpoints) for part in (VALIDATION, TEST))
        best = int(np.argmax(validation))
        chosen.append(test[best])
        stops.append(checkpoints[best])
        tests.append(test)
        own = score_labels(fresh_encoder(frames, seed), MODES["scratch"], load_task(TASK, directory), TEST, FEW, seed)
        scratch.append(own)
    last = [each[-1] for each in tests]
    transfer, control = (mean_interval(np.subtract(last, each)) for each in (scratch, [each[0] for each in tests]))
    measured = (
        f"gain in balanced accuracy by stopping where validation is best (after {stops} updates); the gain of the last "
        f"encoder over scratch is {show_interval(transfer)}, over fresh weights, as frozen, {show_interval(control)}"
    )
    curves = {"frozen": tests, "scratch": [[each] * len(checkpoints) for each in scratch]}
    picture = draw_curves(checkpoints, curves, "updates", "accuracy")
    return judge(chosen, last, 0.02, measured, "last encoder", picture)


def scores(frames: FrameStore, directory: Path, part: str, seed: int, checkpoints: tuple[int, ...]) -> list[float]:
    """The score of each checkpoint, frozen, on a part of the task."""
    out, task = directory / f"encoder-{seed}", load_task(TASK, directory)
    pretrain(frames, out=out, seed=seed, steps=max(checkpoints), keep=checkpoints, **PRETRAINING)
    encoders = (Encoder.load(step_directory(out, step)) for step in checkpoints)
    return [score_labels(encoder, MODES["frozen"], task, part, FEW, seed) for encoder in encoders]


CLAIM = Claim(
    25,
    "Pretraining on the wrong source can harm, and stopping it early limits the harm.",
    measure,
    "the last encoder of the same pretraining",
    study=answer_of("transfer"),
)
