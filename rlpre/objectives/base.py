"""What every self-supervised objective shares: its interface, heads, target networks, and weighted sums."""

import copy
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore
from rlpre.encoders import SequenceEncoder
from rlpre.errors import RlpreError

Needs = Literal["frames", "pairs", "actions"]
DECAY = 0.99  # of target networks, per step; as in SGI


class Objective(nn.Module, ABC):
    """A pretext task: a loss on the features of a batch, with heads that are thrown away after pretraining.

    Args:
        encoder: of the objective's kind; read for its sizes and copied into target networks, not kept.
        frames: read for its spaces and labels, not kept.

    Attributes:
        kind: of the encoder that it pretrains, "vision" or "sequence".
        needs: what it learns from: single frames, frames that follow each other, or the actions between them.
    """

    kind: ClassVar[str] = "vision"
    needs: ClassVar[Needs] = "frames"

    def __init__(self, encoder: Any, frames: FrameStore) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Args:
            views: `FrameViews`, or `WindowViews` for a sequence encoder.

        Returns:
            The scalar loss, and scalar metrics for the curves.
        """

    def after_step(self, encoder: Any) -> None:
        """Called after every step of the optimiser; target networks follow the weights here."""
        return

    def project(self, features: Tensor) -> Tensor | None:
        """Latents (batch, dim) that the loss compares, of features (batch, num_features); None without a projector."""
        projector = getattr(self, "projector", None)
        return projector(features) if projector else None

    def picture(self, encoder: Any, batch: Any) -> Tensor | None:
        """An image (3, H, W) in [0, 1] of some tasks and the model's answers, if there is something to see."""
        return None


class SequenceObjective(Objective):
    """An objective on windows of trajectories.

    Attributes:
        causal: whether the encoder must not see later steps, or must see them.

    Raises:
        RlpreError: if the encoder's ``causal`` is not the objective's.
    """

    kind = "sequence"
    needs = "actions"
    causal: ClassVar[bool] = True

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        if encoder.causal != self.causal:
            name = type(self).__name__.lower()
            why = "would be shown its own answers" if self.causal else "fills in what is hidden from both sides"
            raise RlpreError(f"objective {name!r} {why}: build the sequence encoder with causal={self.causal}")


class WeightedSum(nn.Module):
    """A weighted sum of objectives, which share the features of a batch."""

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleList(parts.values()), weights  # a ModuleDict refuses the key "forward"

    @property
    def objectives(self) -> dict[str, Objective]:
        """The parts by name."""
        return {name: cast(Objective, part) for name, part in zip(self.weights, self.parts, strict=True)}

    @property
    def single(self) -> bool:
        """Whether all parts learn from single frames."""
        return all(part.needs == "frames" for part in self.objectives.values())

    def forward(self, views: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the losses; the metrics of each part, its loss among them, are reported as "NAME/METRIC"."""
        total = torch.zeros((), device=views.batch.anchor_id.device)
        metrics: dict[str, Tensor] = {}
        for name, part in self.objectives.items():
            loss, own = part(views)
            total = total + self.weights[name] * loss
            metrics |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in own.items()}
        return total, metrics

    def after_step(self, encoder: Any) -> None:
        """See ``Objective.after_step``."""
        for part in self.objectives.values():
            part.after_step(encoder)

    def pictures(self, encoder: Any, batch: Any) -> dict[str, Tensor]:
        """The pictures of the parts that have one, by name."""
        drawn = {name: part.picture(encoder, batch) for name, part in self.objectives.items()}
        return {name: picture for name, picture in drawn.items() if picture is not None}


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
    """Copies of modules whose weights are exponential moving averages of the originals'.

    The copies are never optimised. They are part of the state that a pretraining resumes from.

    [0] He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (MoCo).
    [1] Grill et al. 2020, "Bootstrap Your Own Latent" (BYOL).
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


Weighted, Slow = WeightedSum, TargetNetworks  # ALIAS
