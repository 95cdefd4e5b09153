"""One encoder class: input specification, ordered stages, and a checkpoint without pickle."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rlpre.encoders.cnn import cnn
from rlpre.encoders.impala import impala
from rlpre.errors import RlpreError, lookup
from rlpre.files import read_json, write_bytes, write_json

ARCHITECTURES: dict[str, Callable[..., list[nn.Module]]] = {"cnn": cnn, "impala": impala}

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
MIN_STD = 1e-3  # a feature that hardly varies is not blown up to noise


@dataclass(frozen=True)
class InputSpec:
    """What an encoder reads: frames ``shape`` (C, H, W) with values in [low, high].

    They are scaled to [0, 1], then to ``(x - mean) / std``.
    """

    shape: tuple[int, int, int]
    dtype: str = "uint8"
    layout: str = "CHW"
    low: float = 0.0
    high: float = 255.0
    mean: float = 0.0
    std: float = 1.0

    def check(self, space: spaces.Space[Any]) -> None:
        """Refuses an observation space that this specification does not describe.

        Raises:
            RlpreError: naming the shape, channel order, dtype or range that differs.
        """
        if not isinstance(space, spaces.Box):
            raise RlpreError(
                f"the encoder reads a Box of frames, the environment gives {type(space).__name__}: wrap it to give one"
            )
        if space.shape != self.shape:
            channels, height, width = self.shape
            swapped = space.shape == (height, width, channels)
            raise RlpreError(
                f"the observation shape is {space.shape}, the encoder was built for {self.shape} (C, H, W): "
                + ("channels are last, wrap the environment in VecTransposeImage" if swapped else "render at its size")
            )
        if str(space.dtype) != self.dtype:
            raise RlpreError(f"observations are {space.dtype}, the encoder reads {self.dtype}: cast them in a wrapper")
        low, high = float(space.low.min()), float(space.high.max())
        if (low, high) != (self.low, self.high):
            raise RlpreError(
                f"observations range over [{low:g}, {high:g}], the encoder reads [{self.low:g}, {self.high:g}]: "
                "rescale them in a wrapper"
            )

    @property
    def space(self) -> spaces.Box:
        """The observation space that this specification describes."""
        return spaces.Box(self.low, self.high, self.shape, np.dtype(self.dtype).type)


class Encoder(nn.Module):
    """Maps frames to feature vectors.

    Args:
        architecture: a name in the registry ("cnn", "impala").
        input: what the frames look like.
        pretraining: how the weights came about (objective, steps, seed, hash of the frames); empty for fresh weights.
        **arguments: the architecture's own arguments, such as ``features``.

    Weights start orthogonal with gain sqrt(2) and zero bias, as SB3 starts its own extractors, so that a scratch
    agent inside and outside SB3 starts from the same distribution.

    Attributes:
        stages: the parts in order from pixels to features, the unit of partial freezing.
        num_features: length of the feature vector.
        feature_mean: subtracted from the features, 0 until ``standardise``.
        feature_std: divides the features, 1 until ``standardise``.

    Raises:
        RlpreError: for an unknown architecture, an argument it does not take, or frames too small for it.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self, architecture: str, input: InputSpec, pretraining: dict[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__()
        self.architecture, self.input, self.arguments = architecture, input, arguments
        self.pretraining: dict[str, Any] = dict(pretraining or {})
        build = lookup("encoder", architecture, ARCHITECTURES)
        try:
            self.stages = nn.ModuleList(build(*input.shape, **arguments))
            self.num_features = self._count_features()
        except (TypeError, RuntimeError) as error:
            raise RlpreError(
                f"encoder {architecture!r} does not fit frames {input.shape} with {arguments}: {error}"
            ) from error
        self.apply(_orthogonal)
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (batch, C, H, W), any dtype, in [input.low, input.high], to (batch, num_features)."""
        scale = 1.0 / ((self.input.high - self.input.low) * self.input.std)
        shift = -self.input.low * scale - self.input.mean / self.input.std
        x = frames.to(self.dtype) * scale
        if shift:  # bytes need none, and a pass over every pixel is a tenth of the forward pass
            x = x + shift
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
            return cls(config["architecture"], InputSpec(**given), config["pretraining"], **config["arguments"])
        except (KeyError, TypeError) as error:
            raise RlpreError(
                f"the encoder's configuration lacks or misstates {error}: it was not written by rlpre"
            ) from error

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
        if x.ndim != 2:
            raise RlpreError(
                f"encoder {self.architecture!r} gives {tuple(x.shape[1:])} per frame, not a vector: end it with Flatten"
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


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
