"""What frames hold of an environment: ``python scripts/contamination.py runs/frames/mixed MiniGrid-DoorKey-6x6-v0``."""

from dataclasses import asdict
from pathlib import Path

import torch
import tyro

from cli import run
from envs.minigrid.overlap import SEED, STEPS, overlaps
from rlpre import Encoder, FrameStore, InputSpec
from rlpre.evaluation.page import Table, aligned, show_interval
from rlpre.utils import write_json


def main(
    frames: tyro.conf.Positional[Path],
    environments: tyro.conf.Positional[tuple[str, ...]],
    encoder: Path | None = None,
    steps: int = STEPS,
    seed: int = SEED,
    behaviour: str | None = None,
    out: Path | None = None,
) -> None:
    """Prints which share of what an agent will meet the frames contain, with 95 % intervals over fresh episodes.

    Args:
        frames: directory of a frame store, see collect.py.
        environments: where an agent is to be trained or tested.
        encoder: directory of an encoder that compares frames and was not pretrained on these; default: fresh weights.
        steps: to play in each environment.
        seed: of those episodes.
        behaviour: plays them, as for collect.py; default: half at random, half a noisy expert where there is one.
        out: JSON file for the same numbers.
    """
    store = FrameStore.open(frames)
    torch.manual_seed(0)
    judge = Encoder.load(encoder) if encoder else Encoder("cnn", InputSpec(store.space.shape))
    found = overlaps(store, environments, steps, seed, behaviour, judge)
    if out:
        numbers = {name: asdict(overlap) for name, overlap in found.items()}
        write_json(out, {"frames": str(frames), "hash": store.hash, "overlap": numbers})
    print(
        f"{frames}: {len(store):,} frames, {store.distinct:,} distinct; shares of each environment that they contain:"
    )
    rows = [
        [name, *(show_interval(share) if share else "-" for share in overlap.shares.values())]
        for name, overlap in found.items()
    ]
    print(aligned(Table(["", *next(iter(found.values())).shares], rows)))
    for name, overlap in found.items():
        if overlap.untold:
            print(f"{name}: states and layouts are unknown: {overlap.untold}")


if __name__ == "__main__":
    run(main)
