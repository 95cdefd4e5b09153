"""Encoders: one architecture per file, one class around those of frames and one around those of sequences."""

from rlpre.encoders.base import Encoder
from rlpre.encoders.input import InputSpec
from rlpre.encoders.registry import ARCHITECTURES, find_architecture, register_encoder
from rlpre.encoders.sequence import BACKBONES, SequenceEncoder
from rlpre.encoders.text import Vocabulary

AnyEncoder = Encoder | SequenceEncoder

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "AnyEncoder",
    "Encoder",
    "InputSpec",
    "SequenceEncoder",
    "Vocabulary",
    "find_architecture",
    "register_encoder",
]
