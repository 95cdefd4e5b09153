"""A tiny level, its demonstrations and small encoders, for tests of cloned policies."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np
import torch

from agents.cloning import CloneConfig, Episodes, SequencePolicy, loss_and_agreement
from envs.minigrid.demos import demonstrations, stored
from envs.minigrid.trials import ExpertActor, layout_seeds, play
from rlpre import Encoder, FrameStore, InputSpec, SequenceEncoder, Vocabulary

LEVEL = "BabyAI-GoToObj-v0"
SHORT = CloneConfig(steps=60, lr=3e-3, check_every=10, device="cpu")

HOME = TemporaryDirectory()  # removed with the process


def home() -> Path:
    """A new directory."""
    return Path(mkdtemp(dir=HOME.name))


@cache
def demos() -> FrameStore:
    """64 demonstrations, some 380 steps."""
    return demonstrations(LEVEL, home() / "demos", 64, seed=0)


def small(backbone: str = "gru", actions: int = 7, features: int = 128, **arguments: Any) -> SequenceEncoder:
    """An encoder with fresh weights, always the same."""
    torch.manual_seed(0)
    frames = Encoder("cnn", InputSpec((3, 56, 56)), features=features)
    settings = {"width": 32, "layers": 1, "window": 8, **arguments}
    return SequenceEncoder(backbone, frames, actions, Vocabulary.from_missions(demos().missions), **settings)


@cache
def perfect(count: int = 6) -> tuple[SequencePolicy, list[int]]:
    """A policy that has learned the expert's actions by heart, and the seeds of these episodes."""
    seeds = layout_seeds(LEVEL, "train", count)
    policy = SequencePolicy(small())
    store = stored(play(LEVEL, seeds, ExpertActor()), LEVEL, home() / "known")
    batch = Episodes.read(store, policy.encoder).batch(np.arange(count))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(200):
        loss, agreement = loss_and_agreement(policy, batch, replace(SHORT, label_smoothing=0), 0.0, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert agreement == 1
    policy.head.weight.data *= 10  # makes it sure
    return policy.eval(), seeds
