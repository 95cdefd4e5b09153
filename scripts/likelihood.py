"""Masked against autoregressive: ``python scripts/likelihood.py runs/frames/held-out runs/encoders/a runs/encoders/b``.

How likely does each find frames that it has not seen, next and in the middle, and what can be read from its features?
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import rlpre
from cli import run
from rlpre.measure.likelihood import Scores, conditional_likelihood
from rlpre.measure.stats import interval, mean
from rlpre.report.tables import Rows, aligned
from rlpre.report.words import show_interval


def main(
    frames: tyro.conf.Positional[Path],
    encoders: tyro.conf.Positional[tuple[Path, ...]],
    windows: int = 1024,
    seed: int = 0,
) -> None:
    """Compares sequence encoders that were pretrained by autoregressive or masked.

    Three or more by one objective get a mean with a 95 % interval over them.

    Args:
        frames: a store of trajectories that none of them was pretrained on.
        encoders: directories of pretrainings, all of one window.
        windows: how many are drawn.
        seed: draws them.
    """
    if not encoders:
        raise rlpre.RlpreError("no encoder is given: name directories of pretrainings by autoregressive or masked")
    store = rlpre.FrameStore.open(frames)
    if store.hash in (known := {_frames(path): path for path in encoders}):
        raise rlpre.RlpreError(f"{known[store.hash]} was pretrained on {frames}: collect others with another --seed")
    found = conditional_likelihood({str(path): path for path in encoders}, store, windows, seed)
    print(aligned(_rows({path: found[str(path)] | _probes(path) for path in encoders})))
    copied = (f"{found[str(encoders[0])][f'{name}_copied']:.3f} {name}" for name in ("next", "middle"))
    print("nll: in nats, of cells with something in them; gain: over fresh weights")
    print(f"the frame before, as an answer, has accuracy {', '.join(copied)}")


def _rows(found: dict[Path, Scores]) -> Rows:
    """One row an encoder, then one an objective: the mean of its encoders."""
    common = set.intersection(*(set(of) for of in found.values()))
    measures = [name for name in next(iter(found.values())) if name in common and "copied" not in name]
    above = os.path.commonpath([path.parent for path in found])
    rows = [["encoder", *(name.replace("_", " ") for name in measures)]]
    rows += [[os.path.relpath(path, above), *(f"{of[name]:.3f}" for name in measures)] for path, of in found.items()]
    by: dict[str, list[Scores]] = {}
    rng = np.random.default_rng(0)
    for path, scores in found.items():
        by.setdefault(_pretraining(path)["objective"], []).append(scores)
    for objective, these in by.items():
        figures = [interval(np.array([[of[name]] for of in these]), rng, mean) for name in measures]
        rows.append([f"{objective}, n={len(these)}", *map(show_interval, figures)])
    return rows


def _probes(path: Path) -> Scores:
    """What a linear probe reads from an encoder's features, and how much better than before pretraining."""
    facts = _pretraining(path)
    gains = {f"{name} gain": score - facts["control"][name] for name, score in facts["probes"].items()}
    return {**facts["probes"], **gains}


def _frames(path: Path) -> str:
    """The hash of the frames that an encoder was pretrained on."""
    return str(_pretraining(path).get("frames"))


def _pretraining(path: Path) -> dict[str, Any]:
    """How an encoder's weights came about."""
    return rlpre.SequenceEncoder.load(path).pretraining


if __name__ == "__main__":
    run(main)
