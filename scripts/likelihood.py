"""Masked against autoregressive: ``python scripts/likelihood.py runs/frames/held-out runs/encoders/a runs/encoders/b``.

How likely does each find frames that it has not seen, next and in the middle, and what can be read from its features?
"""

from pathlib import Path

import tyro

import rlpre
from cli import run
from rlpre.measure.likelihood import conditional_likelihood


def main(
    frames: tyro.conf.Positional[Path],
    encoders: tyro.conf.Positional[tuple[Path, ...]],
    windows: int = 1024,
    seed: int = 0,
) -> None:
    """Compares sequence encoders that were pretrained by autoregressive or masked.

    Args:
        frames: a store of trajectories that none of them was pretrained on.
        encoders: directories of pretrainings, all of one window.
        windows: how many are drawn.
        seed: draws them.
    """
    store = rlpre.FrameStore.open(frames)
    if store.hash in (known := {_frames(path): path for path in encoders}):
        raise rlpre.RlpreError(f"{known[store.hash]} was pretrained on {frames}: collect others with another --seed")
    found = conditional_likelihood({str(path): path for path in encoders}, store, windows, seed)
    measures = list(next(iter(found.values()), {}))
    wide = max(map(len, found), default=0)
    print(f"{'':<{wide}}" + "".join(f"{name.replace('_', ' '):>17}" for name in measures))
    for name, scores in found.items():
        print(f"{name:<{wide}}" + "".join(f"{scores[measure]:>17.3f}" for measure in measures))
    for path in encoders:
        facts = rlpre.SequenceEncoder.load(path).pretraining
        probes = (f"{name} {score:.3f} ({facts['control'][name]:.3f})" for name, score in facts["probes"].items())
        print(f"{path}: probes, in brackets before pretraining: {', '.join(probes)}")


def _frames(path: Path) -> str:
    """The hash of the frames that an encoder was pretrained on."""
    return str(rlpre.SequenceEncoder.load(path).pretraining.get("frames"))


if __name__ == "__main__":
    run(main)
