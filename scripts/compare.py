"""Compare agents: ``python scripts/compare.py quick`` collects, pretrains, trains every arm, and reports."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tyro

from agents.compare import compare
from agents.presets import PRESETS
from cli import run
from rlpre import RlpreError
from rlpre.cluster import cluster

Preset = tyro.extras.subcommand_type_from_defaults(PRESETS)


def main(
    comparison: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/compare"),
    workers: int | None = None,
    dask: str | None = None,
    gpus: float = 0,
) -> None:
    """Answers how many environment steps pretraining saves.

    Args:
        comparison: a preset, any part of which can be set.
        out: results directory; an interrupted comparison there goes on.
        workers: runs at a time, default one per core; on a cluster, what the cores of each machine are shared by.
        dask: address of a dask scheduler, such as tcp://host:8786, whose workers train; `rlpre.cluster` says how to
            start them. They must see the results directory under the same path.
        gpus: what each run takes of the resource GPU of dask workers: 1, or 0.25 for four runs on one.
    """
    if gpus and dask is None:
        raise RlpreError(f"gpus={gpus:g} are asked of dask workers: give --dask ADDRESS, or leave gpus out")
    with nullcontext() if dask is None else cluster(dask, gpus=gpus) as executor:
        print(compare(comparison, out, workers, executor))
    print(f"page: {out}/runs/report.html   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
