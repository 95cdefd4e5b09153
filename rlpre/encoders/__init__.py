"""Encoders: one architecture per file, one class around them."""

from rlpre.encoders.base import ARCHITECTURES, Encoder, InputSpec

__all__ = ["ARCHITECTURES", "Encoder", "InputSpec"]
