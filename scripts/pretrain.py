"""Pretrain an encoder on stored frames: ``python scripts/pretrain.py runs/frames/doorkey runs/encoders/a``.

On two GPUs with ``--devices 2``; also under Slurm, or ``torchrun --nproc-per-node 2 -- scripts/pretrain.py ...``.
A sequence encoder on top of that one: ``... runs/encoders/b --sequence transformer --start runs/encoders/a --objective
autoregressive --batch 32``.
"""

from pathlib import Path
from typing import Annotated

import torch
import tyro

import rlpre
from cli import run
from rlpre.callbacks import describe


def main(
    frames: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    start: Path | None = None,
    sequence: str | None = None,
    window: int = 32,
    config: Annotated[rlpre.PretrainConfig, tyro.conf.arg(name="")] = rlpre.PretrainConfig(),  # noqa: B008 (frozen)
) -> None:
    """Pretrains an encoder and prints loss, accuracy and what can be read linearly from its features.

    Args:
        frames: directory of a frame store, see collect.py.
        out: directory for the encoder; an interrupted pretraining there goes on.
        start: directory of an encoder whose architecture and weights to start from; default: fresh ones. A sequence
            encoder sees through it.
        sequence: "gru" or "transformer": a sequence encoder, for objective autoregressive, masked or cpc.
        window: steps that a sequence encoder sees.
        config: settings.
    """
    store = rlpre.FrameStore.open(frames)
    first = rlpre.Encoder.load(start) if start else config.encoder
    if sequence:
        first = sequence_encoder(sequence, first, store, window, config)
    result = rlpre.pretrain(store, out=out, encoder=first, config=config)
    encoder = result.encoder
    print(f"{result.path}: {encoder.pretraining['encoder']}, {encoder.num_features} features, {result.seconds:.0f} s")
    print(f"last batch: {describe(result.metrics)}")
    if not result.probes:
        print("no linear probe: the frames have no labels that it could predict")
        return
    print(f"{'linear probe':<16}{'pretrained':>12}{'before':>12}")
    for name, score in result.probes.items():
        print(f"{name:<16}{score:>12.3f}{result.control.get(name, float('nan')):>12.3f}")


def sequence_encoder(
    backbone: str, vision: rlpre.Encoder | str, store: rlpre.FrameStore, window: int, config: rlpre.PretrainConfig
) -> rlpre.SequenceEncoder:
    """A fresh one for the store's actions and missions."""
    if isinstance(vision, str):
        raise rlpre.RlpreError("a sequence encoder sees through a pretrained encoder of frames: give it with --start")
    torch.manual_seed(config.seed)
    vocabulary = rlpre.Vocabulary.from_missions(store.missions) if store.missions else None
    causal = "masked" not in config.objective  # which looks both ways
    return rlpre.SequenceEncoder(backbone, vision, store.num_actions, vocabulary, window=window, causal=causal)


if __name__ == "__main__":
    run(main)
