"""InfoNCE, with identical frames never used as negatives.

[0] van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding".
[1] Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    query: Tensor, key: Tensor, query_id: Tensor, key_id: Tensor, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding each query's own key among the keys of the batch.

    A key that shows the same frame as the query or as the query's own key is no negative: in a small world the same
    frame comes back in 21 to 61 % of batches, and pushing it away would teach noise.

    Args:
        query: (batch, dim), any scale; cosine similarity is used.
        key: (batch, dim); row i is the positive of query i.
        query_id: (batch,) equal for identical frames.
        key_id: (batch,) in the same numbering.
        temperature: divides the similarities.

    Returns:
        The mean loss in nats and the share of queries whose own key is the most similar, both scalars.
    """
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    logits = logits.float().masked_fill(_same(query_id, key_id), -torch.inf)
    target = torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean()


def blind_nce(query_id: Tensor, key_id: Tensor) -> Tensor:
    """The loss, in nats, of an encoder to which all frames look alike: ln N, less where keys are no negatives."""
    return (~_same(query_id, key_id)).sum(1).float().log().mean()


def _same(query_id: Tensor, key_id: Tensor) -> Tensor:
    """Which keys (batch, batch) of other rows are no negatives."""
    same = (key_id[None] == key_id[:, None]) | (key_id[None] == query_id[:, None])
    return same.fill_diagonal_(False)
