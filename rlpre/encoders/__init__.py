"""Encoders: one architecture per file, one class around them."""

from rlpre.encoders.base import Encoder
from rlpre.encoders.input import InputSpec
from rlpre.encoders.registry import ARCHITECTURES, find_architecture, register_encoder

__all__ = ["ARCHITECTURES", "Encoder", "InputSpec", "find_architecture", "register_encoder"]
