"""Masked cells: what do the hidden cells of a frame show, given the others?

A pretext task for encoders of frames of grid worlds, as `rlpre.objectives.masked` is for sequence encoders. Two claims
use it.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from envs.minigrid.render import atlas
from rlpre import Encoder, FrameStore, InputSpec
from rlpre.data.store import COLUMNS, new_store
from rlpre.objectives import Objective, make_reader
from rlpre.objectives.base import head
from rlpre.objectives.batches import FrameViews
from rlpre.objectives.symbols import LOGITS, balanced, count_cells, foreground, mean_where, symbol_loss

HIDDEN, SHARE = 256, 0.3  # units of the head, share of the cells that is hidden
BATCH, RATE, CLIP = 64, 1e-3, 1.0  # frames of an update, learning rate of AdamW, largest norm of the gradient
TESTS = 20  # batches of held-out frames


class MaskedCells(Objective):
    """Cross-entropy of the symbols of hidden cells; those with an object weigh as much as all others together."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.cells, self.decode = count_cells(self, frames), frames.decode
        self.head = head(encoder.num_features, HIDDEN, self.cells * LOGITS)

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        nll, right, symbols = self.guess(views, views.batch.codes)
        objects = foreground(symbols)
        return balanced(nll, objects), {
            "nll": mean_where(nll.detach(), objects),
            "accuracy": mean_where(right, objects),
        }

    def guess(self, views: FrameViews, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the hidden cells (n,): `symbol_loss`'s loss and whether it is right, and their symbols (n, 3)."""
        hidden, shown = self.hide(codes)
        features = views.encode(self.decode(codes.where(shown[..., None], 0)))
        logits = self.head(features).float().view(len(codes), self.cells, LOGITS)[hidden.flatten(1)]
        symbols = codes[hidden].long()
        return *symbol_loss(logits, symbols), symbols

    def hide(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Which cells (batch, rows, columns) of codes (batch, rows, columns, 3) are asked for, and which are shown."""
        hidden = torch.rand(codes.shape[:3], device=codes.device) < SHARE
        return hidden, ~hidden


def stored(codes: np.ndarray, out: Path, size: int = 8) -> FrameStore:
    """A store of single frames with these codes (n, rows, columns, 3), in tiles of ``size`` pixels."""
    space = spaces.Box(0, 255, (3, codes.shape[1] * size, codes.shape[2] * size), np.uint8)
    columns = {"action": -1, "reward": 0.0, "terminated": False, "truncated": False, "episode_start": True, "task": 0}
    with new_store(out, space=space, action_space=None, spec={}, atlas=atlas(size)) as writer:
        writer.append(codes, **columns)
    return FrameStore.open(out)


def copied(frames: FrameStore, out: Path, codes: np.ndarray | None = None) -> FrameStore:
    """A copy of a store without its labels, which pretraining would probe; with other ``codes`` if they are given."""
    kind = {
        "space": frames.space,
        "action_space": frames.action_space,
        "atlas": frames.atlas,
        "palette": frames.palette,
    }
    columns = {name: frames.column(name) for name in ("action", *COLUMNS) if name != "mission"}
    with new_store(out, spec={}, tasks=frames.tasks, **kind) as writer:
        writer.append(frames.codes(np.arange(len(frames))) if codes is None else codes, **columns)
    return FrameStore.open(out)


def fresh_encoder(frames: FrameStore, seed: int, **arguments: int) -> Encoder:
    """An encoder with fresh weights."""
    torch.manual_seed(seed)
    return Encoder("cnn", InputSpec(frames.space.shape), **arguments)


def solve(objective: MaskedCells, encoder: Encoder, frames: FrameStore, steps: int, seed: int, frozen: bool) -> None:
    """Trains an objective's head on frames, together with the encoder unless that is ``frozen``."""
    reader, rng = make_reader(frames, encoder), np.random.default_rng(seed)
    torch.manual_seed(seed)
    modules: Iterable[nn.Module] = (objective,) if frozen else (objective, encoder)
    weights = [weight for module in modules for weight in module.parameters()]
    optimizer = torch.optim.AdamW(weights, RATE)
    for _ in range(steps):
        loss, _ = objective(FrameViews(encoder, reader.draw(BATCH, rng)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()


@torch.no_grad()
def score(objective: MaskedCells, encoder: Encoder, frames: FrameStore, seed: int) -> tuple[float, float]:
    """The mean loss (nats) and the accuracy on hidden cells of held-out frames with an object in them."""
    reader, rng = make_reader(frames, encoder), np.random.default_rng(seed)
    torch.manual_seed(seed)
    objective.eval()
    batches = [reader.draw(BATCH, rng) for _ in range(TESTS)]
    found = [objective.guess(FrameViews(encoder, batch), batch.codes) for batch in batches]
    nll, right, symbols = (torch.cat(parts) for parts in zip(*found, strict=True))
    objects = foreground(symbols)
    return float(mean_where(nll, objects)), float(mean_where(right, objects))
