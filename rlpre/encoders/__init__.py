"""Encoders: of single frames (`Encoder`) and of what happened so far in an episode (`SequenceEncoder`)."""

from os import PathLike
from pathlib import Path

from torch import nn

from rlpre.encoders.encoder import ARCHITECTURES, CONFIG, Encoder, InputSpec, register_encoder
from rlpre.encoders.sequence import BACKBONES, SequenceEncoder, Vocabulary
from rlpre.errors import RlpreError
from rlpre.utils import read_json

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


def load_encoder(path: str | PathLike[str], device: str = "cpu") -> AnyEncoder:
    """Loads a checkpoint directory of either kind of encoder.

    Raises:
        RlpreError: as `Encoder.load`.
    """
    config = read_json(Path(path) / CONFIG)
    sequence = isinstance(config, dict) and config.get("kind") == SequenceEncoder.kind
    return (SequenceEncoder if sequence else Encoder).load(Path(path), device)


def as_encoder(given: object) -> AnyEncoder:
    """Returns the encoder that a caller means by an encoder, the directory of one, or the result of `rlpre.pretrain`.

    Raises:
        RlpreError: for anything else, or a directory without an encoder.
    """
    encoder = given if isinstance(given, nn.Module) else getattr(given, "encoder", given)
    if isinstance(encoder, Encoder | SequenceEncoder):
        return encoder
    if isinstance(encoder, str) and encoder in ARCHITECTURES and not Path(encoder).exists():
        raise RlpreError(f"{encoder!r} is an architecture: give rlpre.Encoder({encoder!r}, rlpre.InputSpec(shape))")
    if isinstance(encoder, str | PathLike):
        return load_encoder(encoder)
    kind = encoder if isinstance(encoder, type) else type(encoder)
    if issubclass(kind, nn.Module):
        raise RlpreError(
            f"{kind.__name__} is a torch module, not an encoder: register what builds it with "
            "rlpre.register_encoder('mine', build), then give rlpre.Encoder('mine', rlpre.InputSpec(shape))"
        )
    accepted = "an rlpre.Encoder, an rlpre.SequenceEncoder, the directory of one, or what rlpre.pretrain returned"
    raise RlpreError(f"{kind.__name__} is no encoder: give {accepted}")
