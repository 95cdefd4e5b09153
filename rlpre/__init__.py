"""Pretrained encoders for Stable-Baselines3: pretrain on offline frames, plug into any policy, measure the gain."""

from rlpre.compare.arms import Arm, Backbone, Clone
from rlpre.compare.compare import ComparisonResult, Demonstrator, compare
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
from rlpre.sb3 import (
    CloneConfig,
    EncodedVecEnv,
    HistoryVecEnv,
    StateVecEnv,
    clone,
    fuse,
    policy_kwargs,
    start_from,
)

__all__ = [
    "Arm",
    "Backbone",
    "Clone",
    "CloneConfig",
    "ComparisonResult",
    "Demonstrator",
    "EncodedVecEnv",
    "Encoder",
    "FrameStore",
    "HistoryVecEnv",
    "InputSpec",
    "PretrainConfig",
    "PretrainResult",
    "RlpreError",
    "SequenceEncoder",
    "StateVecEnv",
    "Vocabulary",
    "align",
    "as_vec_env",
    "clone",
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
    "start_from",
    "to_minari",
    "whiten",
]
