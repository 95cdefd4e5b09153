"""`Encoder`: an architecture found by name, from frames to feature vectors, saved as a checkpoint directory."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rlpre import hub
from rlpre.encoders.networks import Architecture, cnn, flattened_map, impala, output, symbols, vit, whitened
from rlpre.encoders.published import Published, PublishedNetwork, TimmNetwork, TorchvisionNetwork
from rlpre.errors import AXIS, RlpreError, lookup
from rlpre.utils import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from rlpre.encoders import AnyEncoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
MIN_STD = 1e-3  # features that vary less are not scaled up to noise
WHITENED = "whitened:"  # prefix of the names of architectures and backbones with a linear map behind them
HUB = "hub:"  # prefix of names on the Hugging Face Hub, wherever an encoder is read
MAP = "map:"  # prefix of the names of architectures whose features are a feature map, behind a linear map

KINDS: dict[str, type["BaseEncoder"]] = {}  # the class of each kind of checkpoint
ARCHITECTURES: dict[str, Architecture] = {"cnn": cnn, "impala": impala, "symbols": symbols, "vit": vit}
FAMILIES: dict[str, Callable[[str], Architecture]] = {
    "torchvision": TorchvisionNetwork,
    "timm": TimmNetwork,
    "whitened": lambda name: whitened(find_architecture(name)),
    "map": lambda name: flattened_map(find_architecture(name)),
}


def find_architecture(name: str) -> Architecture:
    """Returns the architecture of that name: "cnn", "torchvision:resnet18", "whitened:cnn", or a registered one.

    Raises:
        RlpreError: if the name is unknown or was not registered in this process.
    """
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        return FAMILIES[family](member)
    known = {**ARCHITECTURES, **{f"{family}:NAME": build for family, build in FAMILIES.items()}}
    try:
        return cast(Architecture, lookup("encoder", name, known))
    except RlpreError as error:
        raise RlpreError(f"{error}; one of your own needs rlpre.register_encoder({name!r}, ...) first") from error


def register_encoder(name: str, build: Architecture) -> None:
    """Makes a module of your own an architecture: ``register_encoder("mine", MyNet)``, then ``Encoder("mine", input)``.

    Checkpoints store the name and the arguments, never code: register again, under the same name, before loading.

    Args:
        name: a new one; defining and registering the same class or function again replaces it.
        build: called as ``build(channels, height, width, **arguments)`` with JSON arguments, none named ``weights``.
            It returns a module from frames (batch, C, H, W) to vectors (batch, features), or a list of modules to be
            run in order, which partial freezing can freeze one by one. Its weights are kept.

    Raises:
        RlpreError: if the name is taken or contains a colon, or ``build`` cannot be called.
    """
    if not callable(build):
        raise RlpreError(f"encoder {name!r} is registered with {build!r}: give a class or function, not what it built")
    now, before = (
        (getattr(each, "__module__", None), getattr(each, "__qualname__", each))
        for each in (build, ARCHITECTURES.get(name, build))
    )
    if ":" in name or now != before:
        raise RlpreError(f"the encoder name {name!r} is taken: choose one that is not among {', '.join(ARCHITECTURES)}")
    ARCHITECTURES[name] = build


@dataclass(frozen=True)
class InputSpec:
    """The frames an encoder reads: ``shape`` (C, H, W) with values in [low, high].

    They are scaled to [0, 1], then to ``(x - mean) / std``; ``mean`` and ``std`` are one number, or one per channel.

    Raises:
        RlpreError: naming the value that no encoder can read, such as an empty range or a layout other than "CHW".
    """

    shape: tuple[int, int, int]
    dtype: str = "uint8"
    layout: str = "CHW"
    low: float = 0.0
    high: float = 255.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        self._check_frames()
        for name, above in (("mean", -np.inf), ("std", 0.0)):
            values = np.asarray(getattr(self, name), dtype=float)
            if values.shape not in ((), self.shape[:1]):
                count = f"one number, or {self.shape[0]}, one per channel"
                raise RlpreError(f"{name} has shape {values.shape}: give {count}")
            if not (np.isfinite(values) & (values > above)).all():
                raise RlpreError(f"{name} is {getattr(self, name)}: it must be finite{', and positive' * (above == 0)}")
            plain = values.tolist()
            object.__setattr__(self, name, tuple(plain) if values.ndim else plain)

    def _check_frames(self) -> None:
        if len(self.shape) != 3 or not all(isinstance(side, int | np.integer) and side > 0 for side in self.shape):
            raise RlpreError(f"shape is {self.shape}: give three positive integers, channels, height and width")
        if self.layout != "CHW":
            raise RlpreError(f"layout is {self.layout!r}: encoders read 'CHW', wrap environments in VecTransposeImage")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise RlpreError(f"dtype is {self.dtype!r}: give the name of a numpy dtype, such as 'uint8'") from error
        if dtype.kind not in "uif":
            raise RlpreError(f"dtype is {dtype}: encoders read integers or floats, such as 'uint8' or 'float32'")
        if not -np.inf < self.low < self.high < np.inf:
            raise RlpreError(f"values range over [{self.low}, {self.high}]: low must be below high, and both be finite")
        object.__setattr__(self, "dtype", str(dtype))
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))

    def check(self, space: spaces.Space[Any]) -> None:
        """Refuses an observation space that does not match this specification.

        Raises:
            RlpreError: naming the shape, channel order, dtype or range that differs.
        """
        if not isinstance(space, spaces.Box):
            kind = type(space).__name__
            raise RlpreError(f"the encoder reads a Box of frames, the environment gives {kind}: wrap it to give one")
        last = space.shape == (*self.shape[1:], self.shape[0])
        size = "channels are last, wrap the environment in VecTransposeImage" if last else "render at its size"
        size = AXIS if space.shape == self.shape[1:] else size
        limits = float(space.low.min()), float(space.high.max())
        for what, given, own, hint in (
            ("shape", space.shape, self.shape, size),
            ("dtype", str(space.dtype), self.dtype, "cast observations in a wrapper"),
            ("range", limits, (self.low, self.high), "rescale observations in a wrapper"),
        ):
            if given != own:
                raise RlpreError(f"the observation {what} is {given}, the encoder was built for {own}: {hint}")

    @property
    def space(self) -> spaces.Box:
        """The observation space that matches this specification."""
        return spaces.Box(self.low, self.high, self.shape, np.dtype(self.dtype).type)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift from pixels to the values that the first stage reads, each of shape () or (C, 1, 1)."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64).reshape((-1, 1, 1) if isinstance(values, tuple) else ())
            for values in (self.mean, self.std)
        )
        scale = 1 / ((self.high - self.low) * std)
        return scale.float(), (-self.low * scale - mean / std).float()


class BaseEncoder(nn.Module):
    """What encoders of frames and of sequences share: standardised features, and a checkpoint without pickle.

    A checkpoint is a directory with ``config.json`` and ``model.safetensors``.
    """

    kind: ClassVar[str]  # "vision" or "sequence"
    design: ClassVar[str]  # the attribute, and the field of ``config``, with the name of the architecture or backbone
    stages: nn.ModuleList  # the parts in order, from input to features; the unit of partial freezing
    pretraining: dict[str, Any]  # how the weights were made
    num_features: int  # length of the feature vector
    feature_mean: Tensor  # subtracted from the features, 0 until ``standardise``
    feature_std: Tensor  # divides the features, 1 until ``standardise``

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    def _register_standard(self) -> None:
        self.register_buffer("feature_mean", torch.zeros(self.num_features))
        self.register_buffer("feature_std", torch.ones(self.num_features))

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.feature_mean) / self.feature_std

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Shifts and scales the output so that these features of this encoder get mean 0 and SD 1.

        Heads then read one scale whatever the objective: an SD of 0.2 slows them, one of 18 saturates them.

        Args:
            features: (n, num_features).
        """
        features = features.to(self.feature_mean)
        self.feature_mean += self.feature_std * features.mean(0)
        self.feature_std *= features.std(0).clamp_min(MIN_STD)

    @property
    def name(self) -> str:
        """Of the architecture or backbone."""
        return cast(str, getattr(self, self.design))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(chain(self.parameters(), self.buffers())).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON; ``from_config`` is its inverse."""
        return {"format": FORMAT, **self._config(), "pretraining": self.pretraining}

    def _config(self) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds an encoder with fresh weights from ``config``.

        Raises:
            RlpreError: if a field is missing or unknown, or the configuration is that of another kind of encoder.
        """
        try:
            if (given := config["format"]) != FORMAT:
                raise RlpreError(f"encoder format {given} is not format {FORMAT}: install the rlpre that wrote it")
            kind = config.get("kind", "vision")
            if kind != cls.kind:
                raise RlpreError(
                    f"this is a {kind} encoder, not a {cls.kind} encoder: load it with rlpre.{KINDS[kind].__name__}"
                )
            return cls._build(config)
        except (KeyError, TypeError) as error:
            what = f"the encoder's configuration lacks or misstates {error}"
            raise RlpreError(f"{what}: it was not written by rlpre") from error

    @classmethod
    def _build(cls, config: dict[str, Any]) -> Self:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        """The part of ``config`` that the features depend on."""
        return {key: value for key, value in self._config().items() if key not in ("kind", "num_features")}

    def fingerprint(self) -> str:
        """SHA-256 of all that the features depend on: architecture, input specification and weights."""
        digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Writes ``config.json`` and ``model.safetensors`` into the directory ``path``, each atomically."""
        path = Path(path)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_bytes(path / WEIGHTS, save(tensors))  # serialised in memory, so that a full disk is reported as one
        write_json(path / CONFIG, self.config)
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Loads a checkpoint directory, in the floating type that was saved.

        Raises:
            RlpreError: if a file is missing or damaged, or the tensors are not those of the configuration.
        """
        path = Path(path)
        encoder = cls.from_config(read_json(path / CONFIG))
        try:
            tensors = load_file(path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise RlpreError(f"{path / WEIGHTS} cannot be read ({error}): restore it or pretrain again") from error
        check_tensors(tensors, encoder.state_dict(), str(path / WEIGHTS))
        encoder.to(device, tensors["feature_mean"].dtype).load_state_dict(tensors)
        return encoder

    @classmethod
    def from_hub(cls, name: str, revision: str | None = None, device: str = "cpu") -> Self:
        """Loads an encoder from the Hugging Face Hub, or from its local cache.

        Args:
            name: "user/name".
            revision: a branch, tag or commit; default: the newest.
            device: as in `load`.

        Raises:
            RlpreError: as `rlpre.hub.download` and `load`.
        """
        return cls.load(hub.download(name, revision), device)


class Encoder(BaseEncoder):
    """Maps frames to feature vectors.

    Args:
        architecture: a registered name ("cnn", "impala", "vit", one of your own), "torchvision:NAME", or "timm:NAME".
        input: the frames it reads.
        pretraining: how the weights were made (objective, steps, seed, hash of the frames); empty for fresh weights.
        weights: published weights of a torchvision or timm network by name ("DEFAULT", "IMAGENET1K_V1"), which set
            the mean, standard deviation and size. They are downloaded once; loading a checkpoint never does so.
        **arguments: the architecture's own arguments, such as ``features``.

    Weights of cnn, impala and vit start orthogonal, as in SB3's own extractors; other networks initialise their own.

    Raises:
        RlpreError: for an unknown architecture, an argument it does not take, frames too small for it, a module whose
            output is not a vector, or weights that cannot be loaded.
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
        if weights is not None:
            published, input = _published(build, weights, input)
            arguments = published.arguments | arguments
            self.pretraining |= {"weights": published.name, "url": published.url}
        self.architecture, self.input, self.arguments = architecture, input, _plain(architecture, arguments)
        try:
            self.stages = nn.ModuleList(_listed(architecture, build(*input.shape, **self.arguments)))
            self.num_features = self._count_features()
        except RlpreError:
            raise
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            where, reason = f"frames {input.shape} with {self.arguments}", str(error).split("\n", 1)[0]
            raise RlpreError(
                f"encoder {architecture!r} does not fit {where} ({reason}): if they are small, enlarge them or choose "
                "encoder 'impala'"
            ) from error
        if weights is not None:
            published.load(self.stages, self.arguments)
        for name, tensor in zip(("scale", "shift"), input.affine(), strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.shifted = bool(self.shift.any())
        self._register_standard()

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (batch, C, H, W), any dtype, in [input.low, input.high], to (batch, num_features)."""
        x = frames.to(self.dtype, copy=True).mul_(self.scale)  # in place: a second copy of the pixels costs more
        if self.shifted:
            x = x.add_(self.shift)
        for stage in self.stages:
            x = stage(x)
        return self._standardised(x)

    def _config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("architecture", "arguments", "num_features")}
        return {**own, "input": asdict(self.input)}

    @classmethod
    def _build(cls, config: dict[str, Any]) -> Self:
        input = InputSpec(**config["input"])
        return cls(config["architecture"], input, config["pretraining"], weights=None, **config["arguments"])

    def _count_features(self) -> int:
        x = output(self.stages, *self.input.shape)
        if not isinstance(x, Tensor) or x.ndim != 2:
            shown = tuple(x.shape[1:]) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise RlpreError(f"encoder {self.name!r} gives {shown} per frame, not a vector: end it with Flatten")
        return x.shape[1]


def _published(build: Architecture, weights: str, given: InputSpec) -> tuple[Published, InputSpec]:
    """Published weights, and the specification with the mean and standard deviation that they were trained with."""
    if not isinstance(build, PublishedNetwork):
        raise RlpreError(f"weights={weights!r}: only 'torchvision:NAME' and 'timm:NAME' have some, leave them out")
    published = build.published(str(weights))
    mean, std = published.statistics(given.shape[0])
    input = replace(given, mean=mean, std=std)
    if given != input and (given.mean, given.std) != (InputSpec.mean, InputSpec.std):
        raise RlpreError(f"{published.name} bring their own mean and std: leave them out of the InputSpec")
    return published, input


def _plain(architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as a checkpoint would return them, so that a loaded encoder is built in the same way."""
    try:
        return cast(dict[str, Any], json.loads(json.dumps(arguments)))
    except (TypeError, ValueError) as error:
        raise RlpreError(
            f"encoder {architecture!r} has arguments that are not JSON ({error}): give plain values"
        ) from error


def _listed(architecture: str, built: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    stages: list[Any] = list(built) if isinstance(built, list | tuple | nn.ModuleList) else [built]
    for stage in stages:
        if not isinstance(stage, nn.Module):
            given = type(stage).__name__
            raise RlpreError(f"encoder {architecture!r} gave {given}: return an nn.Module or a list of them")
    return stages


def check_tensors(given: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    """Compares two state dicts; RlpreError names the first missing, extra or misshapen tensor in ``where``."""
    for name in (*wanted, *given):
        if name not in given or name not in wanted:
            what = "has extra" if name in given else "lacks"
            raise RlpreError(f"{where} {what} tensor {name!r}: it belongs to another architecture")
        if given[name].shape != wanted[name].shape:
            shape, expected = tuple(given[name].shape), tuple(wanted[name].shape)
            raise RlpreError(f"{where}: tensor {name!r} has shape {shape}, expected {expected}")


def freeze(module: nn.Module) -> None:
    """Turns every parameter into a buffer of the same name: no algorithm can optimise, decay, clip or average it."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


def load_encoder(path: str | PathLike[str], device: str = "cpu") -> "AnyEncoder":
    """Loads a checkpoint directory of an `Encoder` or a `SequenceEncoder`.

    Raises:
        RlpreError: as `Encoder.load`.
    """
    config = read_json(Path(path) / CONFIG)
    kind = config.get("kind", Encoder.kind) if isinstance(config, dict) else Encoder.kind
    return cast("AnyEncoder", KINDS.get(kind, Encoder).load(Path(path), device))


def as_encoder(given: object) -> "AnyEncoder":
    """Returns the encoder that a caller means by what it gives.

    Args:
        given: an `Encoder` or `SequenceEncoder`, the directory of one, the result of `rlpre.pretrain`, or
            "hub:user/name", a checkpoint on the Hugging Face Hub.

    Raises:
        RlpreError: for anything else, or a directory or name without an encoder.
    """
    encoder = given if isinstance(given, nn.Module) else getattr(given, "encoder", given)
    if isinstance(encoder, BaseEncoder):
        return cast("AnyEncoder", encoder)
    if isinstance(encoder, str) and not Path(encoder).exists():
        if encoder in ARCHITECTURES:
            raise RlpreError(f"{encoder!r} is an architecture: give rlpre.Encoder({encoder!r}, rlpre.InputSpec(shape))")
        if encoder.startswith(HUB):
            return load_encoder(hub.download(encoder.removeprefix(HUB)))
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
