"""Autoregressive: what will be seen next, given all that was seen and done?

[0] Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training" (GPT): the next token.
[1] Janner et al. 2021, "Offline Reinforcement Learning as One Big Sequence Modeling Problem": tokens of trajectories.

Of the next token, (a_t, o_{t+1}), the frame is predicted: the world answers the action, whoever chose it.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.encoders.sequence import SequenceEncoder
from rlpre.frames import FrameStore
from rlpre.objectives.base import head
from rlpre.objectives.sequence import SymbolObjective, WindowViews
from rlpre.objectives.symbols import LOGITS, balanced, foreground, judge, mean_where

HIDDEN = 256  # units that the action gates


class Autoregressive(SymbolObjective):
    """Cross-entropy of the symbols of every cell of o_{t+1}, read from the features at t and the action a_t alone.

    Cells with something in them weigh as much as all others together.

    Its metrics are of cells with something in them; "copied" is the accuracy of answering with o_t.
    """

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.look, self.act = head(encoder.num_features, HIDDEN), nn.Embedding(encoder.actions, HIDDEN)
        self.read = nn.Linear(HIDDEN, self.cells * LOGITS)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch = views.batch
        assert batch.codes is not None
        there = batch.present[:, :-1]  # then the next step is there too: padding is on the left
        now, later = (codes[there].flatten(1, 2).long() for codes in (batch.codes[:, :-1], batch.codes[:, 1:]))
        nll, right = judge(self.predict(views.steps[:, :-1][there], batch.actions[:, 1:][there]), later)
        things, copied = foreground(later), (now == later).all(-1)
        metrics = {"nll": nll.detach(), "accuracy": right, "copied": copied}
        return balanced(nll, things), {name: mean_where(values, things) for name, values in metrics.items()}

    def predict(self, features: Tensor, action: Tensor) -> Tensor:
        """Logits (n, cells, LOGITS) of the frames that ``action`` (n,) leads to from ``features`` (n, width)."""
        hidden = F.relu(self.look(features) * self.act(action))
        logits: Tensor = self.read(hidden).float()
        return logits.view(-1, self.cells, LOGITS)

    def fill(self, views: WindowViews, step: int) -> Tensor:
        """See ``SymbolObjective.fill``: given the past."""
        return self.predict(views.steps[:, step - 1], views.batch.actions[:, step].clamp_min(0))
