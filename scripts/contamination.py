"""What frames hold of an environment: ``python scripts/contamination.py runs/frames/mixed MiniGrid-DoorKey-6x6-v0``."""

from dataclasses import asdict
from pathlib import Path

import torch
import tyro

from cli import run
from envs.overlap import SEED, STEPS, overlaps
from rlpre import Encoder, FrameStore, InputSpec
from rlpre.files import write_json
from rlpre.report.comparison.overlap import columns


def main(
    frames: tyro.conf.Positional[Path],
    environments: tyro.conf.Positional[tuple[str, ...]],
    encoder: Path | None = None,
    steps: int = STEPS,
    seed: int = SEED,
    behaviour: str | None = None,
    out: Path | None = None,
) -> None:
    """Says how much of what an agent will meet was seen before: as shares, with 95 % intervals over fresh episodes.

    Args:
        frames: directory of a frame store, see collect.py.
        environments: where an agent is to be trained or tested.
        encoder: directory of an encoder that judges likeness and has not learned from these frames; default: fresh
            weights.
        steps: to play in each environment.
        seed: of those episodes.
        behaviour: who plays them, as for collect.py; default: half at random, half a noisy expert where there is one.
        out: JSON file for the same figures.
    """
    store = FrameStore.open(frames)
    torch.manual_seed(0)
    judge = Encoder.load(encoder) if encoder else Encoder("cnn", InputSpec(store.space.shape))
    found = overlaps(store, environments, steps, seed, behaviour, judge)
    if out:
        figures = {name: asdict(of) for name, of in found.items()}
        write_json(out, {"frames": str(frames), "hash": store.hash, "overlap": figures})
    print(f"{frames}: {len(store):,} frames, {store.distinct:,} distinct; what each environment shows of them:")
    width = max(map(len, environments)) + 2
    lines = {"": list(columns(next(iter(found.values())))), **{k: list(columns(v).values()) for k, v in found.items()}}
    for name, cells in lines.items():
        print("".join([f"{name:<{width}}", *(f"{cell:<20}" for cell in cells)]).rstrip())
    for name, of in found.items():
        if of.untold:
            print(f"{name}: states and layouts cannot be told: {of.untold}")


if __name__ == "__main__":
    run(main)
