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
MOST_STEPS = 50  # of an episode, so that a policy that fails makes no long film
MILLISECONDS, LAST_MILLISECONDS = 120, 800  # a frame; the last one of an episode
SIDE = 160  # pixels of the longer side of the world
SMALLEST_TILE = 8  # in which its objects can still be told apart
FILM_SEED = 2_000_000  # worlds that neither training nor evaluation sees


def film(policy: BasePolicy, config: TrainConfig, path: Path) -> None:
    """Plays ``EPISODES`` episodes with sampled actions and writes a GIF of the whole world, atomically."""
    env = envs.make(config.env, view=config.view, tile_size=config.tile_size, palette=config.palette)
    torch.manual_seed(config.seed)
    pictures: list[Image.Image] = []
    durations: list[int] = []
    for episode in range(EPISODES):
        observation, _ = env.reset(seed=FILM_SEED + episode)
        world = env.unwrapped
        world.tile_size = max(SMALLEST_TILE, SIDE // max(world.width, world.height))
        for _ in range(MOST_STEPS):
            pictures.append(Image.fromarray(np.asarray(env.render())))
            action, _ = policy.predict(observation, deterministic=False)
            observation, _, terminated, truncated, _ = env.step(int(action))
            if terminated or truncated:
                pictures.append(Image.fromarray(np.asarray(env.render())))
                break
        durations += [MILLISECONDS] * (len(pictures) - len(durations) - 1) + [LAST_MILLISECONDS]
    first, *others = pictures
    with atomic(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    env.close()
