"""Forward: where do the actions lead from o_t?

[0] Schwarzer et al. 2021, "Data-Efficient Reinforcement Learning with Self-Predictive Representations" (SPR).
[1] Schwarzer et al. 2021, "Pretraining Representations for Data-Efficient Reinforcement Learning" (SGI).
[2] Zbontar et al. 2021, "Barlow Twins": decorrelated dimensions, used here instead of negatives.
[3] Bardes et al. 2022, "VICReg": the same with a variance term, which batch normalisation replaces here.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import PROJECTION, Objective, TargetNetworks, head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.losses import ActionCode, info_nce

HIDDEN = 256  # units of the transition model
DECORRELATION = 0.02  # weight of `decorrelation`; VICReg's ratio to its invariance term on latents of variance 1


class Forward(Objective):
    """Cosine distance between the latent predicted from o_t and the actions, and the target network's of o_{t+j} [0].

    A residual transition model, with hidden units gated by the action, is unrolled over a_t .. a_{t+j-1}. The target
    networks are moving averages of encoder and projector. A constant latent would be easy to predict; batch
    normalisation gives each dimension variance 1, and a penalty on correlated dimensions keeps them different.
    """

    needs = "actions"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.code, self.weight = ActionCode(frames), DECORRELATION
        layers = head(encoder.num_features, encoder.num_features, PROJECTION)
        self.projector = nn.Sequential(*layers, nn.BatchNorm1d(PROJECTION, affine=False))
        self.hidden, self.gate = nn.Linear(PROJECTION, HIDDEN), nn.Linear(self.code.size, HIDDEN)
        self.change = nn.Linear(HIDDEN, PROJECTION)
        self.targets = TargetNetworks(encoder, self.projector)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        now = self.projector(views.anchor)
        predicted = self.unroll(now, batch.actions, batch.gap)
        with torch.no_grad():
            encoder, projector = self.targets.copies
            later = projector(views.encode(views.augment(batch.later), encoder))
        error = 1 - F.cosine_similarity(predicted, later).mean()
        correlation = decorrelation(now)
        _, found = info_nce(predicted.detach(), later, batch.anchor_id, batch.later_id)
        metrics = {"accuracy": found["accuracy"], "error": error.detach(), "correlation": correlation.detach()}
        return error + self.weight * correlation, metrics

    def unroll(self, latent: Tensor, actions: Tensor, gap: Tensor) -> Tensor:
        """The latents (batch, dim) that the first ``gap`` (batch,) of the actions (batch, k, ...) lead to."""
        for step, code in enumerate(self.code(actions).unbind(1)):
            moved = latent + self.change(F.relu(self.hidden(latent) * self.gate(code)))
            latent = torch.where((step < gap)[:, None], moved, latent)
        return latent

    def after_step(self, encoder: Encoder) -> None:
        """See ``Objective.after_step``."""
        self.targets.follow(encoder, self.projector)


def decorrelation(latents: Tensor) -> Tensor:
    """Sum of the squared correlations between different dimensions of (batch, dim), divided by dim: 0 .. dim - 1."""
    unit = F.normalize(latents.float() - latents.float().mean(0), dim=0)
    correlation = unit.T @ unit
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)
