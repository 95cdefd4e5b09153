"""Collect offline frames: ``python scripts/collect.py MiniGrid-DoorKey-6x6-v0 --out runs/frames/doorkey``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

import envs
from cli import run


@dataclass(frozen=True)
class Collect:
    """Collects frames and says how rich they are."""

    ids: tyro.conf.Positional[tuple[str, ...]]  # MiniGrid or BabyAI ids, of equal frame shape
    out: Path  # directory of the frame store; an interrupted collection there goes on
    steps: int = 40_000  # transitions in all
    seed: int = 0  # of worlds and actions
    behaviour: str = "random"  # such as "0.5*random + 0.5*expert:0.3" or "agent:runs/a/best_model.zip"
    n_envs: int = 16  # worlds stepped together
    view: str = "partial"  # or "full"
    tile_size: int = 8  # pixels a cell
    palette: str = "day"  # or "night"


def main(settings: tyro.conf.OmitArgPrefixes[Collect]) -> None:
    """Collects and reports."""
    arguments = {name: value for name, value in vars(settings).items() if name != "ids"}
    store = envs.collect(settings.ids, **arguments)
    print(f"{store.path}: {len(store):,} frames, {store.distinct:,} distinct, {store.unchanged:.0%} of steps unchanged")


if __name__ == "__main__":
    run(main)
