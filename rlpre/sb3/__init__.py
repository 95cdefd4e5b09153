"""Pretrained encoders inside Stable-Baselines3."""

from rlpre.sb3.auxiliary import KeepLearning
from rlpre.sb3.clone import CloneConfig, clone
from rlpre.sb3.fuse import fuse
from rlpre.sb3.optim import encoder_optimizer
from rlpre.sb3.policy import MODES, policy_kwargs
from rlpre.sb3.ppo import floored_advantages, kl_penalty, value_first, zero_value
from rlpre.sb3.start import start_from
from rlpre.sb3.state import StateVecEnv
from rlpre.sb3.vecenv import EncodedVecEnv, HistoryVecEnv

__all__ = [
    "MODES",
    "CloneConfig",
    "EncodedVecEnv",
    "HistoryVecEnv",
    "KeepLearning",
    "StateVecEnv",
    "clone",
    "encoder_optimizer",
    "floored_advantages",
    "fuse",
    "kl_penalty",
    "policy_kwargs",
    "start_from",
    "value_first",
    "zero_value",
]
