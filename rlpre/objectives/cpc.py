"""Contrastive predictive coding: which of many frames will be seen some steps later?

[0] van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding".
[1] Guo et al. 2018, "Neural Predictive Belief Representations" (CPC|Action): given the actions in between.
"""

import torch
from torch import Tensor, nn

from rlpre.encoders.sequence import SequenceEncoder
from rlpre.frames import FrameStore
from rlpre.objectives.action_code import ActionCode
from rlpre.objectives.base import head
from rlpre.objectives.info_nce import blind_nce, info_nce
from rlpre.objectives.sequence import SequenceObjective, WindowViews

PROJECTION = 64
ANCHORS = 512  # steps of a batch that look ahead, each the others' negatives


class Cpc(SequenceObjective):
    """InfoNCE from the features at t, unrolled over a_t .. a_{t+k-1}, to the frame o_{t+k}, for every k up to a limit.

    Keys are projections of the frames' own frozen features: nothing can collapse.
    """

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.code, width = ActionCode(frames), encoder.num_features
        self.act = nn.GRUCell(self.code.size, width)
        self.query = head(width, width, PROJECTION)
        self.key = head(encoder.frames.num_features, width, PROJECTION)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch, last = views.batch, views.batch.rows.shape[1] - 1
        window, now = torch.nonzero(batch.present[:, :-1], as_tuple=True)
        chosen = torch.randperm(len(now), device=now.device)[:ANCHORS]
        window, now = window[chosen], now[chosen]
        belief, codes, begin = views.steps[window, now], self.code(batch.actions), batch.ids[window, now]
        beliefs, seen, pairs = [], [], []
        for _ in range(batch.ahead):
            inside = now < last
            window, now, belief, begin = (part[inside] for part in (window, now + 1, belief, begin))
            if len(now) < 2:  # nothing to tell apart
                break
            belief = self.act(codes[window, now], belief)
            beliefs.append(belief)
            seen.append(batch.features[window, now])
            pairs.append((begin, batch.ids[window, now]))
        sizes = [len(belief) for belief in beliefs]
        queries, keys = self.query(torch.cat(beliefs)).split(sizes), self.key(torch.cat(seen)).split(sizes)
        found = [info_nce(q, k, *ids) for q, k, ids in zip(queries, keys, pairs, strict=True)]
        losses, hits = (torch.stack(parts) for parts in zip(*found, strict=True))
        blind = torch.stack([blind_nce(*ids) for ids in pairs]).mean()
        return losses.mean(), {"accuracy": hits.mean(), "furthest": hits[-1], "blind": blind}
