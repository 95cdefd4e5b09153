"""One class around every architecture: ordered stages from frames to features."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from rlpre.encoders.backbone import Published
from rlpre.encoders.checkpoint import FORMAT, Checkpoint
from rlpre.encoders.input import InputSpec
from rlpre.encoders.registry import find_architecture
from rlpre.errors import RlpreError


class Encoder(Checkpoint):
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

    Raises:
        RlpreError: for an unknown architecture, an argument it does not take, frames too small for it, a module that
            does not give vectors, or weights that cannot be had.
    """

    kind, design = "vision", "architecture"
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
        self._register_standard()

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (batch, C, H, W), any dtype, in [input.low, input.high], to (batch, num_features)."""
        x = frames.to(self.dtype, copy=True).mul_(self.scale)  # in place: a second copy of the pixels costs more
        if self.shifted:  # bytes need none
            x = x.add_(self.shift)
        for stage in self.stages:
            x = stage(x)
        return self._standardised(x)

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
    def _built(cls, config: dict[str, Any]) -> Self:
        known = {field.name for field in fields(InputSpec)}
        given = {key: value for key, value in config["input"].items() if key in known}
        given["shape"] = tuple(given["shape"])
        input, pretraining = InputSpec(**given), config["pretraining"]
        return cls(config["architecture"], input, pretraining, weights=None, **config["arguments"])

    def _identity(self) -> dict[str, Any]:
        return {key: self.config[key] for key in ("architecture", "arguments", "input")}

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
