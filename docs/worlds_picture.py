"""Draws docs/worlds.png, frames of each world; run by hand: ``PYTHONPATH=. python docs/worlds_picture.py``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import envs
from rlpre.utils import to_rgb

ROOT = Path(__file__).parents[1]
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "MiniGrid\npartial view": ("MiniGrid-DoorKey-8x8-v0", {"engine": "envpool"}),
    "MiniGrid\nat night": ("MiniGrid-DoorKey-8x8-v0", {"engine": "envpool", "palette": "night"}),
    "MiniGrid\nfull view": ("MiniGrid-DoorKey-8x8-v0", {"view": "full"}),
    "MiniGrid\ndistracting": ("MiniGrid-DoorKey-8x8-v0", {"view": "distract", "strength": 0.5}),
    "BabyAI": ("BabyAI-BossLevel-v0", {"engine": "envpool"}),
    "Procgen\nCoinrun": ("CoinrunEasy-v0", {}),
    "Procgen\nHeist": ("HeistEasy-v0", {}),
    "Atari\nPong": ("Pong-v5", {}),
    "Atari\nMsPacman": ("MsPacman-v5", {}),
    "ViZDoom\nBasic": ("VizdoomBasic-v1", {"shape": (120, 160)}),
    "ViZDoom\nMyWayHome": ("VizdoomMyWayHome-v1", {"shape": (120, 160)}),
    "ViZDoom\nHealth": ("VizdoomHealthGathering-v1", {"shape": (120, 160)}),
}
FRAMES, EVERY = 8, 6  # frames in a row, and the least number of steps between two


def frames(env_id: str, look: dict[str, Any]) -> torch.Tensor:
    """Different frames of one environment under random actions, (8, 3, H, W) uint8, in the order of time."""
    venv, rng = envs.make_vec(env_id, 1, 0, **look), np.random.default_rng(0)
    shown: list[np.ndarray] = [venv.reset()[0]]
    while len(shown) < FRAMES:
        for _ in range(EVERY):
            frame = venv.step(rng.integers(venv.action_space.n, size=1))[0][0]
        if not any(np.array_equal(frame, other) for other in shown):
            shown.append(frame)
    venv.close()
    return to_rgb(torch.from_numpy(np.stack(shown)))


def draw() -> Figure:
    """One row for each world."""
    figure = Figure(figsize=(9, 1.05 * len(WORLDS)), dpi=100, layout="constrained")
    axes = figure.subplots(len(WORLDS), FRAMES)
    for row, (label, (env_id, look)) in zip(axes, WORLDS.items(), strict=True):
        for panel, frame in zip(row, frames(env_id, look), strict=True):
            panel.imshow(frame.permute(1, 2, 0), interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    return figure


if __name__ == "__main__":
    draw().savefig(ROOT / "docs/worlds.png")
