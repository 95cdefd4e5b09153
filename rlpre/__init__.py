"""Pretrained encoders for Stable-Baselines3: pretrain on offline frames, plug into any policy, measure the gain."""

from rlpre.compare.arms import Arm, Backbone
from rlpre.compare.compare import ComparisonResult, compare
from rlpre.encoders import Encoder, InputSpec, SequenceEncoder, Vocabulary, register_encoder
from rlpre.errors import RlpreError
from rlpre.features import whiten
from rlpre.frames import FrameStore
from rlpre.pretrain import PretrainConfig, PretrainResult, pretrain
from rlpre.sb3 import EncodedVecEnv, HistoryVecEnv, fuse, policy_kwargs
from rlpre.sources import collect, from_arrays, from_images, from_minari, to_minari

__all__ = [
    "Arm",
    "Backbone",
    "ComparisonResult",
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
    "compare",
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
