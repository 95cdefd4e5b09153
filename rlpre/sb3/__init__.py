"""The plug: pretrained encoders inside Stable-Baselines3, touched only at its seams."""

from rlpre.sb3.encoded import EncodedVecEnv
from rlpre.sb3.extractor import MODES, policy_kwargs
from rlpre.sb3.fuse import fuse

__all__ = ["MODES", "EncodedVecEnv", "fuse", "policy_kwargs"]
