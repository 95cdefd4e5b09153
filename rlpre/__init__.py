"""Pretrained encoders for Stable-Baselines3: pretrain on offline frames, plug into any policy, measure the gain."""

from rlpre.encoders import Encoder, InputSpec, register_encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.pretrain import PretrainConfig, PretrainResult, pretrain
from rlpre.sb3 import EncodedVecEnv, fuse, policy_kwargs
from rlpre.sources import collect, from_arrays, from_images

__all__ = [
    "EncodedVecEnv",
    "Encoder",
    "FrameStore",
    "InputSpec",
    "PretrainConfig",
    "PretrainResult",
    "RlpreError",
    "collect",
    "from_arrays",
    "from_images",
    "fuse",
    "policy_kwargs",
    "pretrain",
    "register_encoder",
]
