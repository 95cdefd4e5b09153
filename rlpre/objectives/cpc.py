"""Contrastive predictive coding: which of many frames will be seen some steps later?

[0] van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding".
[1] Guo et al. 2018, "Neural Predictive Belief Representations" (CPC|Action): given the actions in between.
"""

import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore
from rlpre.encoders import SequenceEncoder
from rlpre.objectives.base import PROJECTION, Objective, head
from rlpre.objectives.batches import WindowViews
from rlpre.objectives.losses import ActionCode, info_nce

ANCHORS = 512  # steps of a batch to predict from; the frames they lead to are each other's negatives


class Cpc(Objective):
    """InfoNCE from the features at t, unrolled over a_t .. a_{t+k-1}, to the frame o_{t+k}, for every k up to a limit.

    Keys are projections of the frames' own frozen features, so nothing can collapse. The metrics are `info_nce`'s, each
    the mean over all k, and "furthest", the accuracy for the largest k.
    """

    kind, needs = "sequence", "actions"

    def __init__(self, encoder: SequenceEncoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.code, width = ActionCode(frames), encoder.num_features
        self.transition = nn.GRUCell(self.code.size, width)
        self.query = head(width, width, PROJECTION)
        self.key = head(encoder.frames.num_features, width, PROJECTION)

    def forward(self, views: WindowViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        batch, last = views.batch, views.batch.rows.shape[1] - 1
        window, step = torch.nonzero(batch.present[:, :-1], as_tuple=True)
        chosen = torch.randperm(len(step), device=step.device)[:ANCHORS]
        window, step = window[chosen], step[chosen]
        belief, codes, start = views.steps[window, step], self.code(batch.actions), batch.ids[window, step]
        beliefs, seen, ids = [], [], []
        for _ in range(batch.ahead):
            inside = step < last
            window, step, belief, start = (part[inside] for part in (window, step + 1, belief, start))
            if len(step) < 2:  # no negatives
                break
            belief = self.transition(codes[window, step], belief)
            beliefs.append(belief)
            seen.append(batch.features[window, step])
            ids.append((start, batch.ids[window, step]))
        sizes = [len(belief) for belief in beliefs]
        queries, keys = self.query(torch.cat(beliefs)).split(sizes), self.key(torch.cat(seen)).split(sizes)
        losses, found = zip(*map(info_nce, queries, keys, *zip(*ids, strict=True)), strict=True)
        metrics = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
        return torch.stack(losses).mean(), {**metrics, "furthest": found[-1]["accuracy"]}
