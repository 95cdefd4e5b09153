"""The ways that the bench compares: worlds and encoders as one has them without rlpre, and with it."""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper, RGBImgPartialObsWrapper
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import Tensor

import envs
from agents.train import PPOConfig
from rlpre import EncodedVecEnv, Encoder, InputSpec

ENV = "MiniGrid-DoorKey-8x8-v0"
N_ENVS = PPOConfig.n_envs
SHAPE = (3, 56, 56)  # of the partial view
WRAPPERS = {"partial": RGBImgPartialObsWrapper, "full": RGBImgObsWrapper}


def stock_env(view: str) -> gym.Env:
    """An environment of pixels as MiniGrid makes it."""
    return ImgObsWrapper(WRAPPERS[view](gym.make(ENV)))


def stock_vec(view: str = "partial") -> VecMonitor:
    """Many of them as SB3 makes them, with the episode statistics that ``make_vec`` keeps too."""
    return VecMonitor(DummyVecEnv([partial(stock_env, view)] * N_ENVS))


def fast_vec() -> VecMonitor:
    """The same worlds as ``stock_vec``, drawn by look-up."""
    return envs.make_vec(ENV, N_ENVS, seed=0)


def fresh_encoder() -> Encoder:
    """The default encoder; its weights make no difference to its speed."""
    return Encoder("cnn", InputSpec(SHAPE))


class ByHand(BaseFeaturesExtractor):
    """An encoder in SB3's policy as one writes it without rlpre."""

    def __init__(self, observation_space: spaces.Box, encoder: Encoder, trainable: bool) -> None:
        super().__init__(observation_space, encoder.num_features)
        self.encoder = copy.deepcopy(encoder).requires_grad_(trainable)

    def forward(self, observations: Tensor) -> Tensor:
        return self.encoder(observations)


def by_hand(encoder: Encoder, trainable: bool) -> dict[str, Any]:
    """Policy arguments for ``ByHand``."""
    return {
        "features_extractor_class": ByHand,
        "features_extractor_kwargs": {"encoder": encoder, "trainable": trainable},
        "normalize_images": False,
    }


class Forgetful(EncodedVecEnv):
    """Encodes every frame, however often it has been seen."""

    def _encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        return self._run(np.stack(list(frames)))
