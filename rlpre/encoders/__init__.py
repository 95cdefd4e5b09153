"""Encoders: of single frames (`Encoder`) and of what happened so far in an episode (`SequenceEncoder`)."""

from rlpre.encoders.encoder import ARCHITECTURES, Encoder, InputSpec, as_encoder, load_encoder, register_encoder
from rlpre.encoders.sequence import BACKBONES, SequenceEncoder, Vocabulary

AnyEncoder = Encoder | SequenceEncoder

__all__ = [
    "ARCHITECTURES",
    "BACKBONES",
    "AnyEncoder",
    "Encoder",
    "InputSpec",
    "SequenceEncoder",
    "Vocabulary",
    "as_encoder",
    "load_encoder",
    "register_encoder",
]
