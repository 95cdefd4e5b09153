"""Pretrain an encoder on stored frames: ``python scripts/pretrain.py runs/frames/doorkey runs/encoders/a``.

On two GPUs with ``--devices 2``; also under Slurm, or ``torchrun --nproc-per-node 2 -- scripts/pretrain.py ...``.
"""

from pathlib import Path
from typing import Annotated

import tyro

import rlpre
from cli import run


def main(
    frames: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    start: Path | None = None,
    config: Annotated[rlpre.PretrainConfig, tyro.conf.arg(name="")] = rlpre.PretrainConfig(),  # noqa: B008 (frozen)
) -> None:
    """Pretrains an encoder and prints what can be read from it linearly.

    Args:
        frames: directory of a frame store, see collect.py.
        out: directory for the encoder; an interrupted pretraining there goes on.
        start: directory of an encoder whose architecture and weights to start from; default: fresh ones.
        config: settings.
    """
    first = rlpre.Encoder.load(start) if start else config.encoder
    result = rlpre.pretrain(rlpre.FrameStore.open(frames), out=out, encoder=first, config=config)
    encoder = result.encoder
    print(f"{result.path}: {encoder.architecture}, {encoder.num_features} features, {result.seconds:.0f} s")
    print(f"{'linear probe':<16}{'pretrained':>12}{'before':>12}")
    for name, score in result.probes.items():
        print(f"{name:<16}{score:>12.3f}{result.control.get(name, float('nan')):>12.3f}")


if __name__ == "__main__":
    run(main)
