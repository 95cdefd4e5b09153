"""Claim 10: an encoder that knows scenes from jigsaw puzzles turns day into night.

The light at night is local, a lamp that the agent carries, so the translation is no recolouring: it must know where the
agent is. A linear decoder learns it from features of day frames, on exact pairs.
"""

from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import TILE, collect, distinct, fresh_cnn
from rlpre import Encoder, FrameStore, pretrain, whiten
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.features import encode

LEVEL, MOST = "MiniGrid-DoorKey-6x6-v0", 1500


def measure(directory: Path, seeds: int, steps: int = 250, objective: str = "jigsaw") -> Verdict:
    """The quality of the night frames in decibels (PSNR) above that of the same decoder on fresh weights."""
    frames, found = collect(directory / "frames", LEVEL, 12000, view="full"), []
    rows = distinct(frames)[:MOST]
    for seed in range(seeds):
        start = fresh_cnn(frames.decode(frames.read(rows)), seed)
        settings = {"objective": objective, "steps": steps, "batch": 64, "seed": seed}
        trained = pretrain(frames, out=directory / f"{seed}", encoder=start, **settings).encoder
        found.append([_translated(frames, rows, encoder) for encoder in (trained, start)])
    (psnr, cells), (fresh_psnr, fresh_cells) = np.moveaxis(found, 0, -1)
    shares = [show_interval(mean_interval(values)) for values in (cells, fresh_cells)]
    measured = (
        f"PSNR of night frames in dB, above fresh weights; cells with an object recognised {' and '.join(shares)}"
    )
    return judge(psnr, fresh_psnr, 0.5, measured, "fresh weights")


def _translated(frames: FrameStore, rows: np.ndarray, encoder: Encoder) -> tuple[float, float]:
    """PSNR of held-out night frames, and the share of cells with an object whose nearest tile is right."""
    known, asked = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :]
    night = {
        name: frames.atlas.decode(frames.codes(part), "night") for name, part in (("known", known), ("asked", asked))
    }
    mapped = whiten(encoder, frames, features="map")
    decoder = Ridge().fit(encode(mapped, frames, known).numpy(), night["known"].reshape(len(known), -1))
    drawn = decoder.predict(encode(mapped, frames, asked).numpy()).reshape(night["asked"].shape).clip(0, 255)
    error = np.square(drawn - night["asked"]).mean()
    return float(10 * np.log10(255**2 / error)), _recognised(drawn, night, frames.codes(known), frames.codes(asked))


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
)
