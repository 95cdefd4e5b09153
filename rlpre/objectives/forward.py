"""Forward dynamics: which latent do the actions lead to?

[0] Schwarzer et al. 2021, "Data-Efficient Reinforcement Learning with Self-Predictive Representations" (SPR).
[1] Schwarzer et al. 2021, "Pretraining Representations for Data-Efficient Reinforcement Learning" (SGI).
[2] Zbontar et al. 2021, "Barlow Twins": decorrelated dimensions; here instead of negatives, as in
[3] Bardes et al. 2022, "VICReg", whose variance term batch normalisation makes needless.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.augment import random_shift
from rlpre.encoders import Encoder
from rlpre.frames import FrameStore
from rlpre.objectives.action_code import ActionCode
from rlpre.objectives.base import Objective, Slow, head
from rlpre.objectives.batch import Views
from rlpre.objectives.info_nce import info_nce

PROJECTION = 64
HIDDEN = 256  # units of the transition
DECORRELATION = 0.02  # weight of `decorrelation`; VICReg's ratio to its invariance term on latents of variance 1


class Forward(Objective):
    """Cosine distance between the latent that the actions lead to from o_t and a slow network's latent of o_{t+j}.

    Only the latent of o_t is encoded with gradients; a residual transition, whose hidden units the action gates, is
    unrolled over a_t .. a_{t+j-1}. The target comes from copies of encoder and projector that follow the weights as
    moving averages. Dimensions of the latents have variance 1 over the batch by normalisation, and what correlates
    them is a loss: a constant, which would be easy to predict, is out of reach.
    """

    needs = "actions"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.code, self.weight = ActionCode(frames), DECORRELATION
        into = head(encoder.num_features, encoder.num_features, PROJECTION)
        self.projector = nn.Sequential(*into, nn.BatchNorm1d(PROJECTION, affine=False))
        self.look, self.act = nn.Linear(PROJECTION, HIDDEN), nn.Linear(self.code.size, HIDDEN)
        self.move = nn.Linear(HIDDEN, PROJECTION)
        self.slow = Slow(encoder, self.projector)

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        now = self.projector(views.anchor)
        ahead, later = self.unroll(now, batch.actions, batch.gap), self.target(views)
        error = 1 - F.cosine_similarity(ahead, later).mean()
        spread = decorrelation(now)
        _, hits = info_nce(ahead.detach(), later, batch.anchor_id, batch.later_id)
        return error + self.weight * spread, {"accuracy": hits, "error": error.detach(), "correlation": spread.detach()}

    def unroll(self, latent: Tensor, actions: Tensor, gap: Tensor) -> Tensor:
        """The latents (batch, dim) that ``gap`` (batch,) of the actions (batch, k, ...) lead to."""
        for step, code in enumerate(self.code(actions).unbind(1)):
            moved = latent + self.move(F.relu(self.look(latent) * self.act(code)))
            latent = torch.where((step < gap)[:, None], moved, latent)
        return latent

    @torch.no_grad()
    def target(self, views: Views) -> Tensor:
        """Slow latents (batch, dim) of the shifted later frames."""
        encoder, projector = self.slow.copies
        latents: Tensor = projector(views.encode(random_shift(views.batch.later), encoder))
        return latents

    def after_step(self, encoder: Encoder) -> None:
        """See ``Objective.after_step``."""
        self.slow.follow(encoder, self.projector)


def decorrelation(latents: Tensor) -> Tensor:
    """Sum of the squared correlations between different dimensions of (batch, dim), divided by dim: 0 .. dim - 1."""
    unit = F.normalize(latents.float() - latents.float().mean(0), dim=0)
    correlation = unit.T @ unit
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)
