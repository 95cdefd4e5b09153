"""What every self-supervised objective shares: the batch, its encoded views, and weighted sums of objectives."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from rlpre.augment import random_shift
from rlpre.encoders import Encoder
from rlpre.frames import FrameStore


@dataclass(frozen=True)
class Batch:
    """Pairs of frames from the same episode, on the training device.

    Attributes:
        anchor: frames o_t, (batch, C, H, W) uint8 in [0, 255].
        later: frames o_{t+j}, same shape.
        action: a_t, taken at the anchor, (batch,) int64.
        gap: j >= 1, (batch,) int64.
        anchor_id: equal for identical anchors, (batch,) int64.
        later_id: the same for the later frames, in one numbering with ``anchor_id``.
        codes: the anchors' symbols, (batch, rows, columns, 3) uint8, or None for plain pixels.
    """

    anchor: Tensor
    later: Tensor
    action: Tensor
    gap: Tensor
    anchor_id: Tensor
    later_id: Tensor
    codes: Tensor | None


class Views:
    """Features of a batch under random shifts; each is encoded once, however many objectives ask for it."""

    def __init__(self, encoder: Encoder, batch: Batch) -> None:
        self.encoder, self.batch = encoder, batch

    @cached_property
    def anchor(self) -> Tensor:
        """Features of the shifted anchors, (batch, num_features)."""
        return self._encode(self.batch.anchor)

    @cached_property
    def twin(self) -> Tensor:
        """Features of the anchors under a second, independent shift."""
        return self._encode(self.batch.anchor)

    @cached_property
    def later(self) -> Tensor:
        """Features of the shifted later frames."""
        return self._encode(self.batch.later)

    def _encode(self, frames: Tensor) -> Tensor:
        return self.encoder(random_shift(frames))  # type: ignore[no-any-return]


class Objective(nn.Module, ABC):
    """A pretext task: a loss on the encoded views, with heads of its own that are thrown away afterwards.

    Args:
        encoder: read for its sizes, not kept.
        frames: read for its spaces and labels, not kept.
    """

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar loss and scalar metrics to plot."""

    def picture(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """An image (3, H, W) in [0, 1] that shows what the task asks and what the model answers, if there is one."""
        return None


class Weighted(nn.Module):
    """A weighted sum of objectives on shared views."""

    def __init__(self, parts: dict[str, Objective], weights: dict[str, float]) -> None:
        super().__init__()
        self.parts, self.weights = nn.ModuleDict(parts), weights

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Sums the parts' losses; each part's loss and metrics are reported under its name."""
        total = torch.zeros((), device=views.batch.anchor.device)
        metrics: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            loss, own = part(views)
            total = total + self.weights[name] * loss
            metrics |= {f"{name}/loss": loss.detach()} | {f"{name}/{key}": value for key, value in own.items()}
        return total, metrics

    def pictures(self, encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
        """Each part's picture by name, where it has one."""
        parts = {name: cast(Objective, part) for name, part in self.parts.items()}
        drawn = {name: part.picture(encoder, batch) for name, part in parts.items()}
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
