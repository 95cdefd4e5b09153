"""A short film of a policy, for people."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from stable_baselines3.common.policies import BasePolicy

import envs
from agents.train import TrainConfig
from rlpre.files import atomic

EPISODES = 3
MILLISECONDS = 120  # a frame
FILM_SEED = 2_000_000  # worlds that neither training nor evaluation sees


def film(policy: BasePolicy, config: TrainConfig, path: Path) -> None:
    """Plays ``EPISODES`` episodes with sampled actions and writes a GIF of the whole world, atomically."""
    env = envs.make(config.env, view=config.view, tile_size=config.tile_size, palette=config.palette)
    torch.manual_seed(config.seed)
    pictures = []
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=FILM_SEED + episode)
        done = False
        while not done:
            pictures.append(Image.fromarray(np.asarray(env.render())))
            action, _ = policy.predict(observation, deterministic=False)
            observation, _, terminated, truncated, _ = env.step(int(action))
            done = terminated or truncated
    with atomic(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0
        )
