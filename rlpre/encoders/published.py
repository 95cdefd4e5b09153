"""Published networks as encoders: classification networks of torchvision [0] and timm [1], with their weights or fresh.

[0] https://pytorch.org/vision/stable/models.html
[1] Wightman, https://huggingface.co/docs/timm; ``adapt_input_conv`` in ``timm/models/_manipulate.py``: published
    kernels for other numbers of channels.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rlpre.errors import RlpreError, lookup

COLOURS = 3  # channels that published networks read
INCEPTIONS = ("googlenet", "inception_v3")
CONTAINERS = ("Sequential", "Encoder")  # types of modules that are opened to find the blocks; vit_* has an Encoder


@dataclass(frozen=True)
class Published:
    """Published weights of a network.

    They were trained on colour images. If 3 divides the channels of the frames, they are a stack of colour frames, and
    the kernels of the first convolution are repeated for each. Otherwise they are a stack of gray frames, and each gets
    the sum of the kernels over the colours. Both are divided by the number of frames, so that a stack of equal frames
    gives the features of the single frame.
    """

    name: str
    url: str
    mean: tuple[float, ...]  # of the images in [0, 1] that they were trained on, one number per colour
    std: tuple[float, ...]
    arguments: dict[str, Any]  # of the architecture, such as the size to which frames are resized
    fetch: Callable[[dict[str, Any]], dict[str, Tensor]]  # the tensors for such arguments; it may download them

    def statistics(self, channels: int) -> tuple[float | tuple[float, ...], ...]:
        """Mean and standard deviation of frames with this number of channels."""
        frames, gray = divmod(channels, COLOURS)
        if gray:
            return sum(self.mean) / COLOURS, sum(self.std) / COLOURS
        return self.mean * frames, self.std * frames

    def load(self, stages: nn.ModuleList, arguments: dict[str, Any]) -> None:
        """Copies the weights into the stages of the network that was built with these arguments."""
        tensors = self.fetch(arguments)
        for stage in stages:
            for name, own in stage.state_dict().items():  # shares the stage's memory
                given = tensors[name]
                if given.ndim == 4 and given.shape[1] == COLOURS != own.shape[1]:
                    given = _spread(given, own.shape[1])
                if given.shape != own.shape:
                    shapes = f"{tuple(given.shape)}, not {tuple(own.shape)}"
                    raise RlpreError(f"{self.name} hold {name!r} as {shapes}: leave out size, they have their own")
                if not given.isfinite().all():
                    raise RlpreError(f"{self.name} hold NaN or infinity in {name!r}: choose other weights")
                own.copy_(given)


class PublishedNetwork:
    """A network of a library without its classifier, as an architecture; its stages are the network's blocks in order.

    Weights start as the library starts them.
    """

    name: str

    def __call__(
        self,
        channels: int,
        height: int,
        width: int,
        size: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
        **arguments: Any,
    ) -> list[nn.Module]:
        """Builds the stages.

        Args:
            channels: of the frames.
            height: of the frames, in pixels.
            width: of the frames, in pixels.
            size: side, or height and width, to which frames are resized; by default they are not resized.
            interpolation: how they are resized, with antialiasing: "bilinear" or "bicubic".
            **arguments: of the library's own function that builds the network.
        """
        side = _side(size, height, width)
        network, graph = self._trace(channels, side, **arguments)
        if side != (height, width):
            frames = next(iter(graph.nodes))
            settings: dict[str, Any] = {"size": side, "mode": interpolation, "antialias": True}
            with graph.inserting_after(frames):
                resized = graph.call_function(F.interpolate, (frames,), settings)
            frames.replace_all_uses_with(resized, delete_user_cb=lambda user: user is not resized)
        return _split(network, graph)

    def published(self, weights: str) -> Published:
        """The published weights of that name; "DEFAULT" is the library's choice.

        Raises:
            RlpreError: if there are no weights of that name for this network.
        """
        raise NotImplementedError

    def _trace(self, channels: int, side: tuple[int, ...], **arguments: Any) -> tuple[nn.Module, fx.Graph]:
        """The network, and its forward pass up to the classifier."""
        raise NotImplementedError


class TorchvisionNetwork(PublishedNetwork):
    """A classification network of torchvision; RlpreError if it has none of that name."""

    def __init__(self, name: str) -> None:
        from torchvision import models  # slow to import

        self.models: Any = models
        self.name = lookup("torchvision network", name, {known: known for known in models.list_models(module=models)})

    def _trace(self, channels: int, side: tuple[int, ...], **arguments: Any) -> tuple[nn.Module, fx.Graph]:
        settings: dict[str, Any] = {"init_weights": True} if self.name in INCEPTIONS else {}  # without it they warn
        if self.name.startswith("vit_"):
            settings = {"image_size": side[0]}
        elif self.name.startswith("maxvit_"):
            settings = {"input_size": side}
        network = self.models.get_model(self.name, weights=None, **settings, **arguments).eval()
        if channels != COLOURS:
            _widen(network, channels)
        graph = _Blocks().trace(network)
        layers = [node for node in graph.nodes if isinstance(_called(network, node), nn.Linear | nn.Conv2d)]
        layers[-1].replace_all_uses_with(layers[-1].args[0])  # the last one is the classifier
        graph.erase_node(layers[-1])
        return network, graph

    def published(self, weights: str) -> Published:
        """See `PublishedNetwork`; names are such as "DEFAULT" and "IMAGENET1K_V1"."""
        member = lookup(f"weights of {self.name}", weights, self.models.get_model_weights(self.name).__members__)
        preset = member.transforms()
        mean, std = preset.mean, preset.std
        if self.name in INCEPTIONS:  # with weights, these networks would convert the published values to .5 themselves
            mean = std = [0.5] * COLOURS
        arguments = {"size": preset.crop_size[0], "interpolation": preset.interpolation.value}
        return Published(str(member), member.url, tuple(mean), tuple(std), arguments, lambda _: self._fetch(member))

    def _fetch(self, weights: Any) -> dict[str, Tensor]:
        url, folder = weights.url, Path(torch.hub.get_dir(), "checkpoints")
        hint = f"torch looks for {Path(url).name} in {folder}, else downloads {url}; put an intact copy there"
        return _fetched(weights, hint, lambda: self.models.get_model(self.name, weights=weights))


class TimmNetwork(PublishedNetwork):
    """A network of timm, which is the extra ``rlpre[timm]``; RlpreError if it is not installed or lacks the name."""

    def __init__(self, name: str) -> None:
        try:
            import timm  # slow to import
        except ImportError as error:
            raise RlpreError(f"'timm:{name}' needs timm, which is not here: pip install 'rlpre[timm]'") from error
        self.timm: Any = timm
        self.name = lookup("timm network", name, {known: known for known in timm.list_models()})

    def _trace(self, channels: int, side: tuple[int, ...], **arguments: Any) -> tuple[nn.Module, fx.Graph]:
        network = self._create(self.name, side, in_chans=channels, **arguments).eval()
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
        patch = patch if isinstance(patch, int) else patch[0]
        if any(length % patch for length in side):
            shown = f"frames of {side[0]} x {side[1]}"
            raise RlpreError(f"patches of {patch} pixels do not tile {shown}: give size=, a multiple of {patch}")
        options = inspect.signature(network.forward).parameters.values()
        defaults = {option.name: option.default for option in options if option.default is not option.empty}
        graph = _Blocks().trace(network, defaults)
        frames = next(iter(graph.nodes))
        graph.eliminate_dead_code(lambda node: node is frames or node.op == "output")  # options and checks of them
        return network, graph

    def _create(self, name: str, side: tuple[int, ...], **arguments: Any) -> nn.Module:
        """Builds a network for one size of frames; networks that read any size do not take it."""
        for size in ({"img_size": side, "dynamic_img_size": False}, {"img_size": side}):
            with suppress(TypeError):
                return cast(nn.Module, self.timm.create_model(name, num_classes=0, **size, **arguments))
        return cast(nn.Module, self.timm.create_model(name, num_classes=0, **arguments))

    def published(self, weights: str) -> Published:
        """See `PublishedNetwork`; names are timm's tags, such as "augreg_in21k_ft_in1k"."""
        names = {name.partition(".")[2]: name for name in self.timm.list_models(f"{self.name}.*", pretrained=True)}
        default = self.timm.get_pretrained_cfg(self.name)
        if default.tag in names:
            names["DEFAULT"] = names[default.tag]
        name = lookup(f"weights of {self.name}", weights, names)
        config = self.timm.get_pretrained_cfg(name)
        url = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        settings = {"size": config.input_size[-1], "interpolation": config.interpolation}
        mean, std = tuple(config.mean), tuple(config.std)
        return Published(name, url, mean, std, settings, lambda given: self._fetch(name, **given))

    def _fetch(self, name: str, size: int | Sequence[int], interpolation: str, **arguments: Any) -> dict[str, Tensor]:
        hint = "timm reads it from the cache of Hugging Face or downloads it; download it once where there is a network"
        return _fetched(name, hint, lambda: self._create(name, _side(size, 0, 0), pretrained=True, **arguments))


def _side(size: int | Sequence[int] | None, height: int, width: int) -> tuple[int, ...]:
    return (height, width) if size is None else (size, size) if isinstance(size, int) else tuple(size)


def _fetched(weights: object, hint: str, create: Callable[[], nn.Module]) -> dict[str, Tensor]:
    try:
        return create().state_dict()
    except Exception as error:  # downloading and unpickling have many errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RlpreError(f"{weights} cannot be loaded ({reason}): {hint}, or leave out weights") from error


def _widen(network: nn.Module, channels: int) -> None:
    """Gives the first convolution as many input channels, with weights that keep the variance of its output."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    outputs, _, *kernel = first.weight.shape
    deviation = first.weight.std() * (COLOURS / channels) ** 0.5
    first.weight = nn.Parameter(torch.randn(outputs, channels, *kernel) * deviation.item())
    first.in_channels = channels


def _spread(kernels: Tensor, channels: int) -> Tensor:
    """Kernels for colours [1] as kernels for a stack of frames, see `Published`."""
    frames, gray = divmod(channels, COLOURS)
    if gray:
        return kernels.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return kernels.repeat(1, frames, 1, 1) / frames


class _Blocks(fx.Tracer):
    """Traces into containers only; the blocks inside stay whole and still distinguish training from evaluation."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module).__name__ not in CONTAINERS


def _split(network: nn.Module, graph: fx.Graph) -> list[nn.Module]:
    """Cuts the forward pass into stages, before each block with weights to which a single value is passed.

    Norms, activations, pooling and functions belong to the block before them; parallel branches stay in one stage. The
    stages share the blocks of ``network`` under the same names.
    """
    stages: list[nn.Module] = []
    part: list[fx.Node] = []
    start, *nodes = graph.nodes
    place = {node: index for index, node in enumerate(graph.nodes)}
    alive, has_weights = {start}, False
    for node in nodes:
        alive = {value for value in alive if any(place[user] >= place[node] for user in value.users)}
        block = _called(network, node)
        weighted = block is not None and any(parameter.ndim > 1 for parameter in block.parameters())
        if node.op == "output" or (weighted and has_weights and len(alive) == 1):
            (end,) = alive
            stages.append(_stage(network, part, start, end))
            start, part = end, []
        has_weights = has_weights or weighted
        part.append(node)
        alive.add(node)
    return stages


def _stage(network: nn.Module, nodes: list[fx.Node], start: fx.Node, end: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {start: graph.placeholder("x")}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[end])
    return fx.GraphModule(network, graph)


def _called(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None
