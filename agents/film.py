"""A short film of a policy, for people."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import envs
from agents.train import TrainConfig
from rlpre import HistoryVecEnv
from rlpre.files import atomic
from rlpre.sb3.window import window_length

EPISODES = 3
MOST_STEPS = 50  # of an episode, so that a policy that fails makes no long film
MILLISECONDS, LAST_MILLISECONDS = 120, 800  # a frame; the last one of an episode
SIDE = 160  # pixels of the longer side of the world
SMALLEST_TILE = 8  # in which its objects can still be told apart
FILM_SEED = 2_000_000  # worlds that neither training nor evaluation sees


class Camera(gym.Wrapper):
    """Takes a picture of the whole world after every reset and step; a reset starts a new list of them."""

    pictures: list[Image.Image]

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(**arguments)
        world = self.env.unwrapped
        world.tile_size = max(SMALLEST_TILE, SIDE // max(world.width, world.height))
        self.pictures = [self._take()]
        return answer

    def step(self, action: Any) -> Any:
        answer = self.env.step(action)
        self.pictures.append(self._take())
        return answer

    def _take(self) -> Image.Image:
        return Image.fromarray(np.asarray(self.env.render()))


def film(policy: BasePolicy, config: TrainConfig, path: Path) -> None:
    """Plays ``EPISODES`` episodes with sampled actions and writes a GIF of the whole world, atomically.

    Args:
        policy: acts on frames, or on windows of them as `HistoryVecEnv` gives them.
        config: the world and the seed.
        path: of the GIF.
    """
    camera = Camera(envs.make(config.env, view=config.view, tile_size=config.tile_size, palette=config.palette))
    venv: VecEnv = DummyVecEnv([lambda: camera])
    remembers = isinstance(policy.observation_space, spaces.Dict)
    if remembers:
        window = window_length(policy.observation_space)
        venv = HistoryVecEnv(venv, policy.features_extractor.encoder, window, policy.device)
    torch.manual_seed(config.seed)
    pictures: list[Image.Image] = []
    durations: list[int] = []
    for episode in range(EPISODES):
        venv.seed(FILM_SEED + episode)
        observation = venv.reset()
        shots, done = camera.pictures, False
        while not done and len(shots) <= MOST_STEPS:
            action, _ = policy.predict(venv.frames if remembers else observation, deterministic=False)
            observation, _, (done,), _ = venv.step(action)
        pictures += shots
        durations += [MILLISECONDS] * (len(shots) - 1) + [LAST_MILLISECONDS]
    first, *others = pictures
    with atomic(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    venv.close()
