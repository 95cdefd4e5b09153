"""Pretrained encoders for Stable-Baselines3: pretrain on offline frames, plug into any policy, measure the gain."""

from rlpre.compare.arms import Arm, Backbone
from rlpre.compare.compare import ComparisonResult, compare
from rlpre.data.adapters import as_vec_env
from rlpre.data.collect import collect
from rlpre.data.files import from_arrays, from_images
from rlpre.data.minari import from_minari, to_minari
from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder, InputSpec, SequenceEncoder, Vocabulary, register_encoder
from rlpre.errors import RlpreError
from rlpre.features import whiten
from rlpre.hub import push_to_hub
from rlpre.objectives.align import align
from rlpre.pretrain import PretrainConfig, PretrainResult, pretrain
from rlpre.sb3 import EncodedVecEnv, HistoryVecEnv, fuse, policy_kwargs

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
    "align",
    "as_vec_env",
    "collect",
    "compare",
    "from_arrays",
    "from_images",
    "from_minari",
    "fuse",
    "policy_kwargs",
    "pretrain",
    "push_to_hub",
    "register_encoder",
    "to_minari",
    "whiten",
]
