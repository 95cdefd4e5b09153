"""Read a Minari data set into a frame store, write it back, and check that nothing was lost (extra: rlpre[minari])."""

import os
import tempfile

os.environ.setdefault("MINARI_DATASETS_PATH", tempfile.mkdtemp())  # where Minari looks for data sets

import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

import rlpre

# A small data set of 5 episodes with 20 steps each. Normally: minari.download_dataset(...)
rng = np.random.default_rng(0)
episodes = [
    EpisodeBuffer(
        observations=rng.integers(0, 256, (21, 36, 36, 3), dtype=np.uint8),
        actions=rng.integers(0, 4, 20),
        rewards=rng.random(20).tolist(),
        terminations=[False] * 19 + [True],
        truncations=[False] * 20,
    )
    for _ in range(5)
]
data_set = minari.create_dataset_from_buffers(
    "example/noise-v0",
    buffer=episodes,
    observation_space=spaces.Box(0, 255, (36, 36, 3), np.uint8),
    action_space=spaces.Discrete(4),
    jpeg_encoding=False,  # Minari's default encoding of images is lossy
)

frames = rlpre.from_minari(data_set.id, "runs/frames/noise")
print(f"{len(frames)} frames in {int(frames.episode.max()) + 1} episodes, actions {frames.action_space}")

rlpre.to_minari(frames, "example/copy-v0")
again = rlpre.from_minari("example/copy-v0", "runs/frames/noise-copy")
assert np.array_equal(frames.frames(np.arange(len(frames))), again.frames(np.arange(len(again))))
assert np.array_equal(frames.column("action"), again.column("action"))
assert np.array_equal(frames.column("reward"), again.column("reward"))
print("the copy is identical")
