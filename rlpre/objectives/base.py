"""What every self-supervised objective shares: its interface, heads, target networks, and weighted sums."""

import copy
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore

Needs = Literal["frames", "pairs", "actions"]  # each offers what those before it do
PROJECTION = 64  # dimensions that a contrastive loss compares; SimCLR uses 128 for 2048 features
DECAY = 0.99  # of target networks, per step; as in SGI


class Objective(nn.Module, ABC):
    """A pretext task: a loss on the features of a batch, with heads that are thrown away after pretraining.

    It reads the sizes of encoder and frames and keeps neither. If its loss compares projections of the features, call
    the head that makes them ``projector``: then their health is measured too.
    """

    kind: ClassVar[str] = "vision"  # of the encoder that it pretrains, or "sequence"
    needs: ClassVar[Needs] = "frames"  # single ones, "pairs" that follow each other, or the "actions" between them too
    causal: ClassVar[bool] = True  # whether a sequence encoder must not see later steps; False: it must see them

    def __init__(self, encoder: Any, frames: FrameStore) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar loss of a batch, and scalar metrics for the curves.

        ``views`` are `rlpre.objectives.batches.FrameViews`, or `WindowViews` for a sequence encoder.
        """

    def after_step(self, encoder: Any) -> None:
        """Called after every step of the optimiser; target networks follow the weights here."""
        return

    def picture(self, encoder: Any, batch: Any) -> Tensor | None:
        """An image (3, H, W) in [0, 1] of some tasks and the model's answers, if there is something to see."""
        return None


class WeightedSum(nn.Module):
    """A weighted sum of ``objectives``, which share the features of a batch."""

    def __init__(self, objectives: dict[str, Objective], weights: dict[str, float]) -> None:
        super().__init__()
        self.objectives, self.weights = objectives, weights
        self.parts = nn.ModuleList(objectives.values())  # a ModuleDict refuses the key "forward"

    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the losses; the metrics of each part, its loss among them, are reported as "NAME/METRIC"."""
        total = torch.zeros((), device=views.batch.anchor_id.device)
        metrics: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            loss, own = part(views)
            total = total + self.weights[name] * loss
            metrics |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in own.items()}
        return total, metrics


def head(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them, on features standardised over the batch.

    Frames of a small world differ in few pixels, so the features of fresh weights are nearly parallel. Without
    standardisation contrastive losses and classifiers begin on a plateau.
    """
    layers: list[nn.Module] = [nn.BatchNorm1d(sizes[0], affine=False)]
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class TargetNetworks(nn.Module):
    """Copies of modules, never optimised: their weights are moving averages of the originals' (MoCo [0], BYOL [1]).

    [0] He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning".
    [1] Grill et al. 2020, "Bootstrap Your Own Latent".
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.copies = copy.deepcopy(nn.ModuleList(modules)).requires_grad_(False)

    @torch.no_grad()
    def follow(self, *modules: nn.Module) -> None:
        """One step towards ``modules``, given in the order of the copies; running statistics are copied."""
        originals = nn.ModuleList(modules)
        for weight, target in zip(self.copies.parameters(), originals.parameters(), strict=True):
            weight.lerp_(target, 1 - DECAY)
        for buffer, value in zip(self.copies.buffers(), originals.buffers(), strict=True):
            buffer.copy_(value)
