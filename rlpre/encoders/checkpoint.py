"""What encoders of frames and of sequences share: standardised features, a checkpoint without pickle, frozen parts."""

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rlpre import hub
from rlpre.errors import RlpreError
from rlpre.files import read_json, write_bytes, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
MIN_STD = 1e-3  # a feature that hardly varies is not blown up to noise
KINDS = {"vision": "rlpre.Encoder", "sequence": "rlpre.SequenceEncoder"}


class Checkpoint(nn.Module):
    """A module that gives feature vectors and is kept as a directory: ``config.json`` and ``model.safetensors``.

    Attributes:
        kind: of encoder, a name in ``KINDS``.
        design: the attribute, and the field of ``config``, that names what it is built of.
        pretraining: how the weights came about.
        num_features: length of the feature vector.
        feature_mean: subtracted from the features, 0 until ``standardise``.
        feature_std: divides the features, 1 until ``standardise``.
    """

    kind: ClassVar[str]
    design: ClassVar[str]
    pretraining: dict[str, Any]
    num_features: int
    feature_mean: Tensor
    feature_std: Tensor

    def _register_standard(self) -> None:
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Shifts and scales the output so that these features, (n, num_features) of this encoder, get mean 0, SD 1.

        Heads then meet one scale whatever the objective left: features of SD 0.2 starve them, of SD 18 saturate them.
        """
        features = features.to(self.feature_mean)
        self.feature_mean += self.feature_std * features.mean(0)
        self.feature_std *= features.std(0).clamp_min(MIN_STD)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return next(chain(self.parameters(), self.buffers())).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON; ``from_config`` is its inverse."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds an encoder with fresh weights from ``config`` (see ``config``).

        Raises:
            RlpreError: if a field is missing or unknown, or it describes another kind of encoder.
        """
        try:
            if config["format"] != FORMAT:
                raise RlpreError(
                    f"encoder format {config['format']} is not format {FORMAT}: install the rlpre that wrote it"
                )
            found = config.get("kind", "vision")
            if found != cls.kind:
                raise RlpreError(f"this is a {found} encoder, not a {cls.kind} encoder: load it with {KINDS[found]}")
            return cls._built(config)
        except (KeyError, TypeError) as error:
            raise RlpreError(
                f"the encoder's configuration lacks or misstates {error}: it was not written by rlpre"
            ) from error

    @classmethod
    def _built(cls, config: dict[str, Any]) -> Self:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """The part of ``config`` that decides the features."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 over what decides the features: architecture, input specification and weights."""
        digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Writes ``config.json`` and ``model.safetensors`` into the directory ``path``, each atomically."""
        path = Path(path)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(path / WEIGHTS, save(tensors))  # serialised first, so that a full disk is reported as one
        write_json(path / CONFIG, self.config)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Loads a checkpoint directory, strictly.

        Raises:
            RlpreError: if a file is missing or damaged, or a tensor is missing, extra or of another shape.
        """
        path = Path(path)
        encoder = cls.from_config(read_json(path / CONFIG))
        try:
            tensors = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise RlpreError(f"{path / WEIGHTS} cannot be read ({error}): restore it or pretrain again") from error
        check_tensors(tensors, encoder.state_dict(), str(path / WEIGHTS))
        encoder.load_state_dict(tensors, strict=True)
        return encoder.to(device)

    @classmethod
    def from_hub(cls, name: str, revision: str | None = None, device: str = "cpu") -> Self:
        """Downloads an encoder from the Hugging Face Hub, or finds it in the local cache, and loads it.

        Args:
            name: "user/name".
            revision: a branch, tag or commit; default: the newest.
            device: as in `load`.

        Raises:
            RlpreError: as `rlpre.hub.download` and `load`.
        """
        return cls.load(hub.download(name, revision), device)


def check_tensors(given: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    """Compares two state dicts by name and shape.

    Raises:
        RlpreError: naming the first missing, extra or misshapen tensor in ``where``.
    """
    for name in wanted:
        if name not in given:
            raise RlpreError(f"{where} lacks tensor {name!r}: it belongs to another architecture")
        if given[name].shape != wanted[name].shape:
            found, expected = tuple(given[name].shape), tuple(wanted[name].shape)
            raise RlpreError(f"{where}: tensor {name!r} has shape {found}, expected {expected}")
    for name in given:
        if name not in wanted:
            raise RlpreError(f"{where} has extra tensor {name!r}: it belongs to another architecture")


def freeze(module: nn.Module) -> None:
    """Turns every parameter into a buffer of the same name.

    What is not a parameter cannot be optimised, decayed, clipped, or blended into a target network, whoever asks.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
