"""Masked against autoregressive: ``python scripts/likelihood.py runs/frames/held-out runs/encoders/a runs/encoders/b``.

How likely does each find unseen frames, next and in the middle, and what can be read from its features?
"""

import os
from pathlib import Path

import tyro

import rlpre
from agents.likelihood import Scores, conditional_likelihood
from cli import run
from rlpre.evaluation.page import Table, aligned, show_interval
from rlpre.evaluation.stats import mean_interval


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
        windows: number of windows that are drawn.
        seed: of the windows.
    """
    if not encoders:
        raise rlpre.RlpreError("no encoder is given: name directories of pretrainings by autoregressive or masked")
    store = rlpre.FrameStore.open(frames)
    facts = {path: rlpre.SequenceEncoder.load(path).pretraining for path in encoders}
    for path, one in facts.items():
        if one.get("frames") == store.hash:
            raise rlpre.RlpreError(f"{path} was pretrained on {frames}: collect others with another --seed")
    scores = conditional_likelihood({str(path): path for path in encoders}, store, windows, seed)
    found: dict[Path, Scores] = {}
    for path, one in facts.items():
        gains = {f"{name} gain": score - one["control"][name] for name, score in one["probes"].items()}
        found[path] = scores[str(path)] | one["probes"] | gains
    common = set.intersection(*map(set, found.values()))
    measures = [name for name in found[encoders[0]] if name in common and "copied" not in name]
    above = os.path.commonpath([path.parent for path in found])
    rows = [[os.path.relpath(path, above), *(f"{of[name]:.3f}" for name in measures)] for path, of in found.items()]
    for objective in dict.fromkeys(one["objective"] for one in facts.values()):
        these = [found[path] for path, one in facts.items() if one["objective"] == objective]
        means = (show_interval(mean_interval([one[name] for one in these])) for name in measures)
        rows.append([f"{objective}, n={len(these)}", *means])
    print(aligned(Table(["encoder", *(name.replace("_", " ") for name in measures)], rows)))
    copied = (f"{found[encoders[0]][f'{name}_copied']:.3f} {name}" for name in ("next", "middle"))
    print("nll: in nats, of cells with something in them; gain: over fresh weights")
    print(f"predicting the frame before has accuracy {', '.join(copied)}")


if __name__ == "__main__":
    run(main)
