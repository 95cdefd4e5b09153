"""Autoregressive: what will the next frame show, given all that was seen and done?

[0] Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training" (GPT): the next token.
[1] Janner et al. 2021, "Offline Reinforcement Learning as One Big Sequence Modeling Problem": tokens of trajectories.

The next token is (a_t, o_{t+1}). Only the frame is predicted: it is the world's answer to the action, whoever acted.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.data.store import FrameStore
from rlpre.encoders import SequenceEncoder
from rlpre.objectives.base import head
from rlpre.objectives.batches import WindowViews
from rlpre.objectives.symbols import LOGITS, SymbolObjective, balanced, foreground, mean_where, symbol_loss

HIDDEN = 256  # units that the action gates


class Autoregressive(SymbolObjective):
    """Cross-entropy of the symbols of every cell of o_{t+1}, given the features at t and the action a_t.

    Cells with an object weigh as much as all others together. The metrics are of cells with an object; "copied" is the
    accuracy of answering with o_t.
    """

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.hidden, self.gate = head(encoder.num_features, HIDDEN), nn.Embedding(encoder.actions, HIDDEN)
        self.output = nn.Linear(HIDDEN, self.cells * LOGITS)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        present = batch.present[:, :-1]  # then the next step is present too: padding is on the left
        now, later = (codes[present].flatten(1, 2).long() for codes in (batch.codes[:, :-1], batch.codes[:, 1:]))
        logits = self.predict(views.steps[:, :-1][present], batch.actions[:, 1:][present])
        nll, right = symbol_loss(logits, later)
        objects, copied = foreground(later), (now == later).all(-1)
        metrics = {"nll": nll.detach(), "accuracy": right, "copied": copied}
        return balanced(nll, objects), {name: mean_where(values, objects) for name, values in metrics.items()}

    def predict(self, features: Tensor, action: Tensor) -> Tensor:
        """Logits (n, cells, LOGITS) of the frames that ``action`` (n,) leads to from ``features`` (n, width)."""
        return self.logits(F.relu(self.hidden(features) * self.gate(action)))

    def fill(self, views: WindowViews, step: int) -> Tensor:
        """See ``SymbolObjective.fill``; given the steps before."""
        return self.predict(views.steps[:, step - 1], views.batch.actions[:, step].clamp_min(0))
