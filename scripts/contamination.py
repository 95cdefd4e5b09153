"""What frames hold of an environment: ``python scripts/contamination.py runs/frames/mixed MiniGrid-DoorKey-6x6-v0``."""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
import tyro

import envs
import rlpre
from cli import run
from envs.minigrid.overlap import SEED, STEPS, overlaps
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.compare.train import make_venv
from rlpre.evaluation.overlap import Overlap, overlap
from rlpre.evaluation.page import Table, aligned, show_interval
from rlpre.utils import write_json


def main(
    frames: tyro.conf.Positional[Path],
    environments: tyro.conf.Positional[tuple[str, ...]] = (),
    env: str = "",
    encoder: Path | None = None,
    steps: int = STEPS,
    seed: int = SEED,
    behaviour: str | None = None,
    out: Path | None = None,
) -> None:
    """Prints which share of what an agent will meet the frames contain, with 95 % intervals over fresh episodes.

    Args:
        frames: directory of a frame store, see collect.py.
        environments: ids of MiniGrid or BabyAI in which an agent is to be trained or tested.
        env: instead of ids: another Gymnasium id, or "module:function" of a function (n_envs, seed) -> VecEnv.
        encoder: directory of an encoder that compares frames and was not pretrained on these; default: fresh weights.
        steps: to play in each environment.
        seed: of those episodes.
        behaviour: plays them, as for collect.py; default: half at random, half a noisy expert where there is one.
        out: JSON file for the same numbers.
    """
    store = FrameStore.open(frames)
    torch.manual_seed(0)
    judge = Encoder.load(encoder) if encoder else Encoder("cnn", InputSpec(store.space.shape))
    if bool(environments) == bool(env):
        raise RlpreError("give ids of MiniGrid or BabyAI, or one other environment as --env ID|MODULE:FUNCTION")
    if env and behaviour:
        raise RlpreError(f"behaviour {behaviour!r} is for ids of MiniGrid or BabyAI: leave it out")
    if env:
        found = {env: other(store, env, steps, seed, judge)}
    else:
        found = overlaps(store, environments, steps, seed, behaviour, judge)
    if out:
        numbers = {name: asdict(part) for name, part in found.items()}
        write_json(out, {"frames": str(frames), "hash": store.hash, "overlap": numbers})
    print(
        f"{frames}: {len(store):,} frames, {store.distinct:,} distinct; shares of each environment that they contain:"
    )
    rows = [
        [name, *(show_interval(share) if share else "-" for share in part.shares.values())]
        for name, part in found.items()
    ]
    print(aligned(Table(["", *next(iter(found.values())).shares], rows)))
    for name, part in found.items():
        if part.why_unknown:
            print(f"{name}: states and layouts are unknown: {part.why_unknown}")


def other(store: FrameStore, env: str, steps: int, seed: int, judge: Encoder) -> Overlap:
    """Compares the frames with random episodes of any environment, by observations alone."""
    spec = store.manifest["spec"]
    settings = {"seed": seed, "size": spec.get("size"), "gray": bool(spec.get("gray"))}
    with tempfile.TemporaryDirectory() as folder:
        venv = make_venv(envs.find(env), 8, seed)
        met = rlpre.collect(venv, Path(folder, "met"), steps, **settings)
        return overlap(store, met, f"rlpre cannot read the state of {env}", judge)


if __name__ == "__main__":
    run(main)
