"""`align`: two encoders of two views of the same things learn one space, so that what reads one may read the other.

[0] Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (CLIP): symmetric
    InfoNCE between two encoders.
[1] Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning": one of the two stays as it is.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.errors import RlpreError, whole

CHUNK = 1024  # items encoded at a time


class Aligned(NamedTuple):
    """Two encoders of one space, in evaluation mode, and the mean loss of the last tenth of the steps in nats."""

    first: Any
    second: Any
    loss: float


def align(
    first: nn.Module,
    second: nn.Module,
    pairs: tuple[Tensor, Tensor],
    *,
    steps: int = 500,
    batch: int = 256,
    lr: float = 2e-3,
    temperature: float = 0.3,
    seed: int = 0,
) -> Aligned:
    """Trains copies of two encoders until both views of one thing have the same features.

    The loss is symmetric InfoNCE [0] plus the mean squared distance of the two features of a pair, which is also what
    similarity means here (minus the distance, instead of the cosine): without it the two clouds of features keep an
    offset, which InfoNCE does not see, and a policy that was trained on one encoder fails on the other. To keep such a
    policy, freeze its encoder (``requires_grad_(False)``): an encoder without trainable weights stays as it is [1].

    Args:
        first: any module from the items of ``pairs[0]`` to features (batch, d), such as an `rlpre.Encoder`; features
            of about mean 0 and SD 1, as pretrained encoders have them, suit the temperature.
        second: the same for ``pairs[1]``, with as many features.
        pairs: two tensors (n, ...): row i of both shows one thing. Pairs that show the same item on either side are
            not told apart.
        steps: of the optimiser, AdamW.
        batch: pairs for each step.
        lr: learning rate.
        temperature: divides the similarities.
        seed: of the batches.

    Returns:
        The copies. `rlpre.objectives.align.recall` measures them.

    Raises:
        RlpreError: for pairs or features of different lengths, too small numbers, two frozen encoders, or a loss that
            is not finite.

    Example:
        >>> day, night = torch.randn(64, 8), torch.randn(64, 8)
        >>> aligned = align(nn.Linear(8, 4), nn.Linear(8, 4), (day, night), steps=2, batch=16)
        >>> aligned.second(night).shape
        torch.Size([64, 4])
    """
    ids = _numbers(pairs)
    if steps < 1 or not 2 <= batch <= len(pairs[0]):
        raise RlpreError(f"{steps} steps with {batch} of {len(pairs[0])} pairs: give 1 step or more, 2 pairs to all")
    whole(steps=steps, batch=batch, seed=seed)
    both = nn.ModuleList([copy.deepcopy(first), copy.deepcopy(second)])
    trained = [weight for weight in both.parameters() if weight.requires_grad]
    if not trained:
        raise RlpreError("neither encoder has trainable weights: unfreeze one with requires_grad_(True)")
    for encoder in both:
        encoder.train(any(weight.requires_grad for weight in encoder.parameters()))
    optimizer, device = torch.optim.AdamW(trained, lr=lr), trained[0].device
    rng, losses = np.random.default_rng(seed), []
    for _ in range(steps):
        rows = torch.from_numpy(rng.choice(len(pairs[0]), batch, replace=False))
        here, there = (encoder(items[rows].to(device)) for encoder, items in zip(both, pairs, strict=True))
        if here.shape != there.shape:
            raise RlpreError(f"features are {here.shape[1]} and {there.shape[1]} numbers: build both with as many")
        loss = _symmetric(here, there, _alike(ids, rows, rows).to(device), temperature)
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise RlpreError(f"the loss is not finite at step {len(losses)}: lower lr={lr:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Aligned(both[0].eval(), both[1].eval(), float(np.mean(losses[-max(1, steps // 10) :])))


@torch.no_grad()
def recall(aligned: Aligned, pairs: tuple[Tensor, Tensor], candidates: int = 256, seed: int = 0) -> float:
    """The share of first views whose nearest second view, among so many candidates, shows the same thing (recall@1).

    Chance is about 1 / ``candidates``. Other pairs that show the same item on either side count as right too.

    Args:
        aligned: from `align`.
        pairs: as for `align`, best of things that it has not seen.
        candidates: drawn anew for each query, its own pair among them.
        seed: of the draws.

    Raises:
        RlpreError: if there are fewer pairs than candidates.
    """
    ids, n = _numbers(pairs), len(pairs[0])
    if not 2 <= candidates <= n:
        raise RlpreError(f"{candidates} candidates among {n} pairs: give 2 to {n}")
    here, there = (
        torch.cat([encoder(part.to(_device(encoder))).float().cpu() for part in torch.split(items, CHUNK)])
        for encoder, items in zip(aligned[:2], pairs, strict=True)
    )
    distance, queries = torch.cdist(here, there), torch.arange(n)
    shown = torch.from_numpy(np.random.default_rng(seed).random((n, n))).fill_diagonal_(-1)
    chosen = shown.argsort(1)[:, :candidates].flip(1)  # its own pair last: of equal distances the first wins
    nearest = chosen.gather(1, distance.gather(1, chosen).argmin(1, keepdim=True))[:, 0]
    return float(_alike(ids, queries, queries)[queries, nearest].float().mean())


def _symmetric(here: Tensor, there: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """The loss of `align`; pairs that are ``alike`` (batch, batch) are no negatives of each other."""
    here, there = here.float(), there.float()
    squared = here.square().sum(1, keepdim=True) + there.square().sum(1) - 2 * here @ there.T
    distance = squared / here.shape[1]
    logits = -distance / temperature
    own = torch.eye(len(here), dtype=torch.bool, device=here.device)
    logits = logits.masked_fill(alike & ~own, -torch.inf)
    target = torch.arange(len(here), device=here.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 + distance.diagonal().mean()


def _numbers(pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A number for each item of either side, equal for identical items."""
    lengths = [len(items) for items in pairs]
    if lengths[0] != lengths[1]:
        raise RlpreError(f"there are {lengths[0]} first and {lengths[1]} second views: give as many, row by row")
    first, second = (
        torch.from_numpy(np.unique(items.flatten(1).cpu().numpy(), axis=0, return_inverse=True)[1].reshape(-1))
        for items in pairs
    )
    return first, second


def _alike(ids: tuple[Tensor, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """Which pairs show the same item on either side, (rows, columns) bool."""
    return (ids[0][rows, None] == ids[0][columns]) | (ids[1][rows, None] == ids[1][columns])


def _device(encoder: nn.Module) -> torch.device:
    tensors = (*encoder.parameters(), *encoder.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
