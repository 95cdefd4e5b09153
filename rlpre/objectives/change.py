"""Change: how do the actions change the frame?

[0] Oh et al. 2015, "Action-Conditional Video Prediction using Deep Networks in Atari Games": features gated by actions.
[1] Xue et al. 2016, "Visual Dynamics: Probabilistic Future Frame Synthesis via Cross Convolutional Networks": the
    difference image instead of the next frame.

Whoever predicts the next frame, or the present one, spends most features on what covers most pixels, such as a
background. But what stays is not in the difference, and what moves by itself is noise there that no action explains.
What is left is what the actions move, and to say where it goes one must know where it is.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder
from rlpre.objectives.base import Objective, head
from rlpre.objectives.batches import Batch, FrameViews
from rlpre.objectives.losses import ActionCode
from rlpre.utils import image_grid

HIDDEN = 512  # units that the actions gate
SIDE = 14  # largest height and width of the change to predict: a quarter of a tile of 8 pixels in a view of 7 tiles


class Change(Objective):
    """Mean squared error of o_{t+j} - o_t, given the features of o_t and the actions in between [0, 1].

    Differences are averaged to at most `SIDE` x `SIDE` pixels, and the error is divided by their mean square: 1 is the
    loss of predicting no change. Only the half of the batch that changes most is used, because little can be learned
    from the actions that do nothing. "r2" is 1 - loss. Give ``gap=1`` where one action changes much of the frame, as in
    grid worlds: over more steps, more of the change is what moves by itself.
    """

    needs = "actions"

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        channels, *sides = encoder.input.shape
        self.shape = [channels, *(min(side, SIDE) for side in sides)]
        self.scale = encoder.input.high - encoder.input.low
        self.code = ActionCode(frames)
        self.hidden, self.further = head(encoder.num_features, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.gate = nn.Linear(self.code.size, HIDDEN)
        self.output = nn.Linear(HIDDEN, torch.Size(self.shape).numel())

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch, change = views.batch, self.change(views.batch)
        most = max(len(change) // 2 // views.world, 2) * views.world  # of equal number for each process, 2 for its norm
        kept = change.square().flatten(1).mean(1).topk(most).indices
        predicted = self.predict(views.encode(batch.anchor[kept]), batch.actions[kept], batch.gap[kept])
        loss = F.mse_loss(predicted, change[kept]) / change[kept].square().mean().clamp_min(1e-8)
        return loss, {"r2": 1 - loss.detach()}

    def change(self, batch: Batch) -> Tensor:
        """What there is to predict, (batch, C, h, w) in [-1, 1]."""
        difference = (batch.later.float() - batch.anchor.float()) / self.scale
        return F.adaptive_avg_pool2d(difference, (self.shape[1], self.shape[2]))

    def predict(self, features: Tensor, actions: Tensor, gap: Tensor) -> Tensor:
        """The change (batch, C, h, w) through the first ``gap`` (batch,) of the actions (batch, k, ...)."""
        hidden = self.hidden(features)
        for step, code in enumerate(self.code(actions).unbind(1)):
            moved = F.relu((self.further(hidden) if step else hidden) * self.gate(code))
            hidden = torch.where((step < gap)[:, None], moved, hidden)
        return cast(Tensor, self.output(hidden)).float().view(-1, *self.shape)

    def picture(self, encoder: Encoder, batch: Batch) -> Tensor | None:
        """Three rows: the frame, how it changes, the model's prediction; grey is no change."""
        frames = batch.anchor[:8]
        predicted = self.predict(encoder(frames), batch.actions[:8], batch.gap[:8])
        changes = ((each + 1) / 2 * 255 for each in (self.change(batch)[:8], predicted.clamp(-1, 1)))
        shown = [F.interpolate(each, frames.shape[2:]).to(frames.dtype) for each in changes]
        return image_grid(torch.cat([frames, *shown]), len(frames))
