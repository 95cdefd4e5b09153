"""One encoder class: ordered stages, and a checkpoint without pickle."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rlpre.encoders.backbone import Published
from rlpre.encoders.input import InputSpec
from rlpre.encoders.registry import find_architecture
from rlpre.errors import RlpreError
from rlpre.files import read_json, write_bytes, write_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
MIN_STD = 1e-3  # a feature that hardly varies is not blown up to noise


class Encoder(nn.Module):
    """Maps frames to feature vectors.

    Args:
        architecture: a name in the registry ("cnn", "impala", "vit", one of your own), or "torchvision:NAME".
        input: what the frames look like.
        pretraining: how the weights came about (objective, steps, seed, hash of the frames); empty for fresh weights.
        weights: published weights of a torchvision network by name ("DEFAULT", "IMAGENET1K_V1"), which bring their own
            mean, standard deviation and size. Torch downloads them once; loading a checkpoint never does.
        **arguments: the architecture's own arguments, such as ``features``.

    Weights of cnn, impala and vit start orthogonal, as SB3 starts its own extractors; others start their own way.

    Attributes:
        stages: the parts in order from pixels to features, the unit of partial freezing.
        num_features: length of the feature vector.
        feature_mean: subtracted from the features, 0 until ``standardise``.
        feature_std: divides the features, 1 until ``standardise``.

    Raises:
        RlpreError: for an unknown architecture, an argument it does not take, frames too small for it, a module that
            does not give vectors, or weights that cannot be had.
    """

    feature_mean: Tensor
    feature_std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        architecture: str,
        input: InputSpec,
        pretraining: dict[str, Any] | None = None,
        *,
        weights: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        build, self.pretraining = find_architecture(architecture), dict(pretraining or {})
        published = None if weights is None else Published(build, weights)
        if published:
            input, arguments = published.input(input), published.arguments(arguments)
            self.pretraining |= published.origin
        self.architecture, self.input, self.arguments = architecture, input, _plain(architecture, arguments)
        try:
            self.stages = nn.ModuleList(_listed(architecture, build(*input.shape, **self.arguments)))
            self.num_features = self._count_features()
        except RlpreError:
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise RlpreError(
                f"encoder {architecture!r} does not fit frames {input.shape} with {self.arguments}: "
                + str(error).split("\n", 1)[0]
            ) from error
        if published:
            published.load(self.stages)
        for name, tensor in zip(("scale", "shift"), input.affine(), strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.shifted = bool(self.shift.any())
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (batch, C, H, W), any dtype, in [input.low, input.high], to (batch, num_features)."""
        x = frames.to(self.dtype, copy=True).mul_(self.scale)  # in place: a second copy of the pixels costs more
        if self.shifted:  # bytes need none
            x = x.add_(self.shift)
        for stage in self.stages:
            x = stage(x)
        return (x - self.feature_mean) / self.feature_std

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
        """Everything but the weights, ready for JSON; ``Encoder.from_config`` is its inverse."""
        return {
            "format": FORMAT,
            "architecture": self.architecture,
            "arguments": self.arguments,
            "num_features": self.num_features,
            "input": asdict(self.input),
            "pretraining": self.pretraining,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Encoder":
        """Builds an encoder with fresh weights from ``config`` (see ``config``).

        Raises:
            RlpreError: if a field is missing or unknown.
        """
        try:
            if config["format"] != FORMAT:
                raise RlpreError(
                    f"encoder format {config['format']} is not format {FORMAT}: install the rlpre that wrote it"
                )
            known = {field.name for field in fields(InputSpec)}
            given = {key: value for key, value in config["input"].items() if key in known}
            given["shape"] = tuple(given["shape"])
            input, pretraining = InputSpec(**given), config["pretraining"]
            return cls(config["architecture"], input, pretraining, weights=None, **config["arguments"])
        except (KeyError, TypeError) as error:
            raise RlpreError(
                f"the encoder's configuration lacks or misstates {error}: it was not written by rlpre"
            ) from error

    def fingerprint(self) -> str:
        """SHA-256 over what decides the features: architecture, input specification and weights."""
        config = {key: self.config[key] for key in ("architecture", "arguments", "input")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
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
    def load(cls, path: str | Path, device: str = "cpu") -> "Encoder":
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

    def _count_features(self) -> int:
        with torch.no_grad():
            x = torch.zeros(1, *self.input.shape)
            for stage in self.stages.eval():
                x = stage(x)
        self.stages.train()
        if not isinstance(x, Tensor) or x.ndim != 2:
            found = tuple(x.shape[1:]) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise RlpreError(
                f"encoder {self.architecture!r} gives {found} per frame, not a vector: end it with Flatten"
            )
        return x.shape[1]


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


def _plain(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a checkpoint gives them back, so that a loaded encoder is built like the first one."""
    try:
        return cast(dict[str, Any], json.loads(json.dumps(arguments)))
    except (TypeError, ValueError) as error:
        raise RlpreError(
            f"encoder {architecture!r} has arguments that are not JSON ({error}): give names and numbers, which a "
            "checkpoint can hold"
        ) from error


def _listed(architecture: str, built: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    stages: list[Any] = list(built) if isinstance(built, list | tuple | nn.ModuleList) else [built]
    for stage in stages:
        if not isinstance(stage, nn.Module):
            raise RlpreError(
                f"encoder {architecture!r} gave {type(stage).__name__}: return an nn.Module or a list of them"
            )
    return stages
