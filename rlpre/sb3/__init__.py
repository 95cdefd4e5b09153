"""The plug: pretrained encoders inside Stable-Baselines3, touched only at its seams."""

from rlpre.sb3.advantages import floored_advantages
from rlpre.sb3.encoded import EncodedVecEnv
from rlpre.sb3.fuse import fuse
from rlpre.sb3.history import HistoryVecEnv
from rlpre.sb3.modes import MODES, policy_kwargs
from rlpre.sb3.optim import paced, value_first
from rlpre.sb3.reference import kl_to

__all__ = [
    "MODES",
    "EncodedVecEnv",
    "HistoryVecEnv",
    "floored_advantages",
    "fuse",
    "kl_to",
    "paced",
    "policy_kwargs",
    "value_first",
]
