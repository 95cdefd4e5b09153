"""torchvision's classification networks as encoders, with their published weights or without.

[0] https://pytorch.org/vision/stable/models.html
[1] Wightman, ``adapt_input_conv`` in ``timm/models/_manipulate.py``: published kernels for other numbers of channels.
"""

from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rlpre.encoders.input import InputSpec
from rlpre.encoders.split import split, trace, without_head
from rlpre.errors import RlpreError, lookup

COLOURS = 3  # channels that every one of these networks reads
INCEPTIONS = ("googlenet", "inception_v3")


class Backbone:
    """A torchvision network without its classifier, as an architecture.

    Its stages are the network's blocks in order; weights start as torchvision starts them.

    Raises:
        RlpreError: if torchvision has no classification network of that name.
    """

    def __init__(self, name: str) -> None:
        from torchvision import models  # here, because few need it

        self.name = lookup("torchvision network", name, {known: known for known in models.list_models(module=models)})

    def __call__(
        self,
        channels: int,
        height: int,
        width: int,
        size: int | Sequence[int] | None = None,
        interpolation: str = "bilinear",
    ) -> list[nn.Module]:
        """Builds the stages.

        Args:
            channels: of the frames; the first convolution reads as many.
            height: of the frames, in pixels.
            width: of the frames, in pixels.
            size: side, or height and width, to which frames are resized; default as they are.
            interpolation: how, with antialiasing: "bilinear" or "bicubic".
        """
        from torchvision import models

        side = (height, width) if size is None else (size, size) if isinstance(size, int) else tuple(size)
        network = models.get_model(self.name, weights=None, **self._settings(side)).eval()
        if channels != COLOURS:
            _widen(network, channels)
        graph = without_head(network, trace(network, (nn.Sequential, models.vision_transformer.Encoder)))
        if side != (height, width):
            _resize_first(graph, side, interpolation)
        return split(network, graph)

    def _settings(self, side: tuple[int, ...]) -> dict[str, Any]:
        if self.name.startswith("vit_"):
            return {"image_size": side[0]}
        if self.name.startswith("maxvit_"):
            return {"input_size": side}
        return {"init_weights": True} if self.name in INCEPTIONS else {}  # the default, but then they warn


class Published:
    """Published weights of a torchvision network, and the preprocessing that they were trained with.

    They were trained on colours. Stacks of colour frames (3 n channels) repeat the kernels over the frames; any other
    number of channels is taken for a stack of gray frames, and each gets the sum of the kernels over the colours. Both
    are divided by the number of frames, so that a stack of equal frames gives the features of the one frame.

    Raises:
        RlpreError: for an architecture without published weights, or a name that torchvision does not give to any.
    """

    def __init__(self, architecture: object, weights: str) -> None:
        if not isinstance(architecture, Backbone):
            raise RlpreError(f"weights={weights!r} are published for 'torchvision:NAME' encoders alone: leave them out")
        from torchvision import models

        self.network = architecture.name
        known = models.get_model_weights(self.network).__members__
        self.weights = lookup(f"weights of {self.network}", str(weights), known)
        self.transforms = self.weights.transforms()

    @property
    def origin(self) -> dict[str, Any]:
        """How the weights came about."""
        return {"weights": str(self.weights), "url": self.weights.url}

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the network, by default the size of its published crop; whole frames are resized to it."""
        published = {"size": self.transforms.crop_size[0], "interpolation": self.transforms.interpolation.value}
        return published | given

    def input(self, given: InputSpec) -> InputSpec:
        """The specification with the published mean and standard deviation.

        Raises:
            RlpreError: if it had others.
        """
        mean, std = self.transforms.mean, self.transforms.std
        if self.network in INCEPTIONS:  # with weights they would turn the published values into these themselves
            mean = std = [0.5] * COLOURS
        frames, gray = divmod(given.shape[0], COLOURS)
        mean, std = (sum(values) / COLOURS if gray else values * frames for values in (mean, std))
        published = replace(given, mean=mean, std=std)
        if given != published and (given.mean, given.std) != (InputSpec.mean, InputSpec.std):
            raise RlpreError(f"{self.weights} bring their own mean and std: leave them out of the InputSpec")
        return published

    def load(self, stages: nn.ModuleList) -> None:
        """Copies the weights into the stages of a `Backbone`, downloading them if they are not there.

        Raises:
            RlpreError: if they cannot be had, are damaged, or do not fit the size.
        """
        tensors = self._fetch()
        for stage in stages:
            for name, own in stage.state_dict().items():  # the stage's own memory
                found = tensors[name]
                if found.ndim == 4 and found.shape[1] == COLOURS != own.shape[1]:
                    found = _spread(found, own.shape[1])
                if found.shape != own.shape:
                    shapes = f"{tuple(found.shape)}, not {tuple(own.shape)}"
                    raise RlpreError(f"{self.weights} hold {name!r} as {shapes}: leave out size, they have their own")
                if not found.isfinite().all():
                    raise RlpreError(f"{self.weights} hold no numbers in {name!r}: choose others of {self.network}")
                own.copy_(found)

    def _fetch(self) -> dict[str, Tensor]:
        from torchvision import models

        try:
            network = models.get_model(self.network, weights=self.weights)
        except (OSError, HTTPException, RuntimeError, UnpicklingError, EOFError) as error:
            url, folder = self.weights.url, Path(torch.hub.get_dir(), "checkpoints")
            raise RlpreError(
                f"{self.weights} cannot be had ({str(error).splitlines()[0]}): torch looks for {Path(url).name} in "
                f"{folder}, else downloads {url}; put an intact copy there, or leave out weights"
            ) from error
        return network.state_dict()  # type: ignore[no-any-return]


def _widen(network: nn.Module, channels: int) -> None:
    """Gives the first convolution as many input channels, drawn so that its output varies as before."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    outputs, _, *kernel = first.weight.shape
    deviation = first.weight.std() * (COLOURS / channels) ** 0.5
    first.weight = nn.Parameter(torch.randn(outputs, channels, *kernel) * deviation.item())
    first.in_channels = channels


def _spread(kernels: Tensor, channels: int) -> Tensor:
    frames, gray = divmod(channels, COLOURS)
    if gray:
        return kernels.sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return kernels.repeat(1, frames, 1, 1) / frames


def _resize_first(graph: fx.Graph, side: tuple[int, ...], interpolation: str) -> None:
    entering = next(iter(graph.nodes))
    with graph.inserting_after(entering):
        how: dict[str, Any] = {"size": side, "mode": interpolation, "antialias": True}
        resized = graph.call_function(F.interpolate, (entering,), how)
    entering.replace_all_uses_with(resized, delete_user_cb=lambda user: user is not resized)
