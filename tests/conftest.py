"""Frames that several test modules learn from, collected once."""

from pathlib import Path

import pytest
import torch

import envs
from rlpre import FrameStore


@pytest.fixture(scope="session")
def doorkey(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """2,000 steps of DoorKey, half random and half by the expert."""
    out: Path = tmp_path_factory.mktemp("frames") / "doorkey"
    return envs.collect("MiniGrid-DoorKey-5x5-v0", out, 2000, seed=0, behaviour="0.5*random + 0.5*expert:0.2")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors run faster on one thread, and several test processes share the cores."""
    torch.set_num_threads(1)
