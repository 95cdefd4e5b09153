"""Pretrained encoders for Stable-Baselines3: pretrain on offline frames, plug into any policy, measure the gain."""

from rlpre.encoders import Encoder, InputSpec, SequenceEncoder, Vocabulary, register_encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.loop import PretrainConfig
from rlpre.pretrain import PretrainResult, pretrain
from rlpre.sb3 import EncodedVecEnv, HistoryVecEnv, fuse, policy_kwargs
from rlpre.sources import collect, from_arrays, from_images, from_minari, to_minari
from rlpre.features import whiten

__all__ = [
    "EncodedVecEnv",
    "Encoder",
    "FrameStore",
    "HistoryVecEnv",
    "InputSpec",
    "PretrainConfig",
    "PretrainResult",
    "RlpreError",
    "SequenceEncoder",
    "Vocabulary",
    "collect",
    "from_arrays",
    "from_images",
    "from_minari",
    "fuse",
    "policy_kwargs",
    "pretrain",
    "register_encoder",
    "to_minari",
    "whiten",
]
