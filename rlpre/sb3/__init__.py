"""The plug: pretrained encoders inside Stable-Baselines3, touched only at its seams."""

from rlpre.sb3.advantages import floored_advantages
from rlpre.sb3.encoded import EncodedVecEnv
from rlpre.sb3.fuse import fuse
from rlpre.sb3.history import HistoryVecEnv
from rlpre.sb3.modes import MODES, policy_kwargs

__all__ = ["MODES", "EncodedVecEnv", "HistoryVecEnv", "floored_advantages", "fuse", "policy_kwargs"]
