"""What every self-supervised objective shares: its interface, heads, slow targets, and weighted sums of objectives."""

import copy
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from rlpre.frames import FrameStore

Needs = Literal["frames", "pairs", "actions"]
SLOWNESS = 0.99  # of slow copies, per step; SGI


class Objective(nn.Module, ABC):
    """A pretext task: a loss on the encoded views, with heads of its own that are thrown away afterwards.

    Args:
        encoder: of its kind; read for its sizes and to begin a slow copy, not kept.
        frames: read for its spaces and labels, not kept.

    Attributes:
        kind: of encoder that it pretrains; `READERS` says what its batches and views are.
        needs: what it learns from: single frames, frames that follow each other, or the actions between them.
    """

    kind: ClassVar[str] = "vision"
    needs: ClassVar[Needs] = "frames"

    def __init__(self, encoder: Any, frames: FrameStore) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar loss and scalar metrics to plot, given the views of a batch."""

    def after_step(self, encoder: Any) -> None:
        """Called after every step of the optimiser, for targets that follow the weights slowly."""
        return

    def project(self, features: Tensor) -> Tensor | None:
        """Latents (batch, dim) that the loss compares, of features (batch, num_features); None without a projector."""
        projector = getattr(self, "projector", None)
        return projector(features) if projector else None

    def picture(self, encoder: Any, batch: Any) -> Tensor | None:
        """An image (3, H, W) in [0, 1] that shows what the task asks and what the model answers, if there is one."""
        return None


class Weighted(nn.Module):
    """A weighted sum of objectives on shared views."""

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts.values()), weights  # a ModuleDict takes no part named "forward"

    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the parts' losses; each part's loss and metrics are reported under its name."""
        total = torch.zeros((), device=views.batch.anchor_id.device)
        metrics: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            loss, own = part(views)
            total = total + self.weights[name] * loss
            metrics |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in own.items()}
        return total, metrics

    @property
    def objectives(self) -> dict[str, Objective]:
        """The parts by name."""
        return {name: cast(Objective, part) for name, part in zip(self.weights, self.parts, strict=True)}

    @property
    def single(self) -> bool:
        """Whether all parts learn from single frames."""
        return all(part.needs == "frames" for part in self.objectives.values())

    def after_step(self, encoder: Any) -> None:
        """See ``Objective.after_step``."""
        for part in self.objectives.values():
            part.after_step(encoder)

    def pictures(self, encoder: Any, batch: Any) -> dict[str, Tensor]:
        """Each part's picture by name, where it has one."""
        drawn = {name: part.picture(encoder, batch) for name, part in self.objectives.items()}
        return {name: picture for name, picture in drawn.items() if picture is not None}


def head(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them, on features standardised over the batch.

    Frames of a small world differ in few pixels: unless centred, their fresh features are nearly parallel, and
    contrast and classification alike start on a plateau.
    """
    layers: list[nn.Module] = [nn.BatchNorm1d(sizes[0], affine=False)]
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Slow(nn.Module):
    """Copies of modules that follow their weights as exponential moving averages: targets that stay put for a while.

    The copies are never optimised. They are part of the state that a pretraining resumes from.

    [0] He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (MoCo).
    [1] Grill et al. 2020, "Bootstrap Your Own Latent" (BYOL).
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.copies = copy.deepcopy(nn.ModuleList(modules)).requires_grad_(False)

    @torch.no_grad()
    def follow(self, *modules: nn.Module) -> None:
        """One step towards ``modules``, given in the order of the copies; running statistics are taken over whole."""
        new = nn.ModuleList(modules)
        for weight, target in zip(self.copies.parameters(), new.parameters(), strict=True):
            weight.lerp_(target, 1 - SLOWNESS)
        for buffer, value in zip(self.copies.buffers(), new.buffers(), strict=True):
            buffer.copy_(value)
