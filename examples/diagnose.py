"""Diagnose an encoder before an agent trains on it: what can a linear head read, and have the features collapsed?

Probes need frames with labels. Here a square moves over the frame. Its colour and the third of the frame that it
is in are the labels.
"""

from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

import rlpre
from rlpre.evaluation.diagnose import diagnose, write_diagnosis
from rlpre.evaluation.health import encoder_health
from rlpre.evaluation.probes import fresh, linear_probe
from rlpre.objectives import make_reader


def draw(rng: np.random.Generator, length: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One episode: frames (length, 3, 36, 36), the colour of each, and the third of the frame that the square is in."""
    colour, row = rng.integers(3), rng.integers(28)
    columns = np.abs((np.arange(length) + rng.integers(56)) % 56 - 28)  # from left to right and back
    frames = rng.integers(0, 60, (length, 3, 36, 36), dtype=np.uint8)
    for frame, column in zip(frames, columns, strict=True):
        frame[colour, row : row + 8, column : column + 8] = 255
    return frames, np.full(length, colour), columns // 10


def record(path: str, seed: int, episodes: int = 30) -> rlpre.FrameStore:
    """Writes episodes with their labels. Frames without actions have action -1."""
    rng = np.random.default_rng(seed)
    space, labels = Box(0, 255, (3, 36, 36), np.uint8), ("colour", "third")
    with rlpre.FrameStore.create(path, space=space, action_space=None, spec={"seed": seed}, labels=labels) as writer:
        for _ in range(episodes):
            frames, colour, third = draw(rng)
            columns = {"action": -1, "reward": 0.0, "terminated": False, "truncated": False, "task": 0}
            start = np.arange(len(frames)) == 0
            writer.append(frames, episode_start=start, colour=colour, third=third, **columns)
    return rlpre.FrameStore.open(path)


seen = record("runs/frames/squares", seed=0)
encoder = rlpre.pretrain(seen, objective="temporal", steps=20, batch=32, out="runs/encoders/squares").encoder

# Single measurements, on frames that pretraining has not seen, beside fresh weights of the same architecture.
target = record("runs/frames/squares-test", seed=1)
reader = make_reader(target, encoder)
print("probes:", linear_probe(encoder, reader), "fresh weights:", linear_probe(fresh(encoder), reader))
print("directions in which features vary:", round(encoder_health(encoder, reader).centred_rank, 1))

# Everything on one page: report.html, diagnosis.json and diagnosis.png.
found = diagnose(encoder, target, pretrained_on=seen)
print(write_diagnosis(encoder, Path("runs/encoders/squares"), Path("runs/diagnosis"), found, target, seen))
