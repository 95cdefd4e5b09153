"""Claim 10: an encoder that knows scenes from jigsaw puzzles turns day into night.

The light at night is local, a lamp that the agent carries, so the translation is no recolouring: it must know where the
agent is. A linear decoder learns it from features of day frames, on exact pairs.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import TILE, Clone, collect, distinct, fresh_cnn, mean_return
from rlpre import Encoder, FrameStore, pretrain, whiten
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.features import encode

LEVEL, MOST, EPISODES = "MiniGrid-DoorKey-6x6-v0", 1500, 16
PENALTIES = np.logspace(0, 4, 3)  # of the decoder, chosen by leave-one-out


def measure(directory: Path, seeds: int, steps: int = 250) -> Verdict:
    """The quality of the night frames in decibels (PSNR) above that of the same decoder on fresh weights."""
    frames, found, by_night = collect(directory / "frames", LEVEL, 12000, view="full"), [], []
    rows = distinct(frames)[:MOST]
    parts = known, _ = np.split(rows, [len(rows) * 3 // 4])
    for seed in range(seeds):
        start = fresh_cnn(frames.decode(frames.read(rows)), seed)
        settings = {"objective": "jigsaw", "steps": steps, "batch": 64, "seed": seed}
        trained = pretrain(frames, out=directory / f"{seed}", encoder=start, **settings).encoder
        found.append([_translated(frames, *parts, encoder, seed) for encoder in (trained, start)])
        by_night.append(_night_return(frames, known, lambda raw: _night(frames, raw), seed))
    (psnr, cells, played), (fresh_psnr, fresh_cells, fresh_played) = np.moveaxis(found, 0, -1)
    shares = [show_interval(mean_interval(values)) for values in (cells, fresh_cells)]
    returns = [show_interval(mean_interval(values)) for values in (played, fresh_played, by_night)]
    measured = (
        f"PSNR of night frames in dB, above fresh weights; cells with an object recognised {' and '.join(shares)}; "
        f"return at night of a clone that saw drawn nights alone {' and '.join(returns[:2])}, real nights {returns[2]}"
    )
    return judge(psnr, fresh_psnr, 0.5, measured, "fresh weights")


def _translated(
    frames: FrameStore, known: np.ndarray, asked: np.ndarray, encoder: Encoder, seed: int
) -> tuple[float, float, float]:
    """PSNR of held-out night frames, the share of their objects whose nearest tile is right, and `_night_return`."""
    night = {name: _night(frames, frames.read(part)).numpy() for name, part in (("known", known), ("asked", asked))}
    mapped = whiten(encoder, frames, features="map")
    decoder = RidgeCV(PENALTIES).fit(encode(mapped, frames, known).numpy(), night["known"].reshape(len(known), -1))

    @torch.inference_mode()
    def draw(raw: Tensor) -> Tensor:
        drawn = decoder.predict(mapped(frames.decode(raw)).numpy()).clip(0, 255)
        return torch.from_numpy(drawn.reshape(-1, *frames.space.shape).astype(np.float32))

    drawn = draw(frames.read(asked)).numpy()
    error = np.square(drawn - night["asked"]).mean()
    objects = _recognised(drawn, night, frames.codes(known), frames.codes(asked))
    return float(10 * np.log10(255**2 / error)), objects, _night_return(frames, known, draw, seed)


def _night(frames: FrameStore, raw: Tensor) -> Tensor:
    """The night frames of raw rows."""
    return frames.atlas.decode_torch(raw, "night")


def _night_return(frames: FrameStore, rows: np.ndarray, show: Callable[[Tensor], Tensor], seed: int) -> float:
    """The return at night of a clone that learned from frames as ``show`` draws them."""
    encoder = fresh_cnn(_night(frames, frames.read(rows)), seed)
    return mean_return(Clone(encoder, frames, rows, seed, show), LEVEL, EPISODES, view="full", palette="night")


def _recognised(drawn: np.ndarray, night: dict[str, np.ndarray], known: np.ndarray, asked: np.ndarray) -> float:
    """Each drawn cell is compared with what the same cell shows in the known frames."""
    right = []
    for row, column in np.argwhere((asked[..., 0] > 4).any(0)):
        y, x = (slice(TILE * place, TILE * (place + 1)) for place in (row, column))
        tiles, first = np.unique(night["known"][:, :, y, x].reshape(len(known), -1), axis=0, return_index=True)
        objects = asked[:, row, column, 0] > 4
        cells = drawn[objects][:, :, y, x].reshape(objects.sum(), 1, -1)
        nearest = first[np.square(cells - tiles).sum(-1).argmin(1)]
        right.append((known[nearest, row, column, :2] == asked[objects, row, column, :2]).all(-1))
    return float(np.concatenate(right).mean())


CLAIM = Claim(
    10,
    "Jigsaw puzzles prepare an encoder to turn day into night.",
    measure,
    "the same decoder on fresh weights",
    needs="a puzzle that asks for every cell; the order of a few parts can be told from less",
)
