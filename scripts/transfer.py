"""Measure transfer: ``python scripts/transfer.py quick`` pretrains, starts agents from every checkpoint, and judges."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tyro

from agents.transfer import transfer
from agents.transfer_presets import TRANSFERS
from cli import run
from rlpre.cluster import cluster

Preset = tyro.extras.subcommand_type_from_defaults(TRANSFERS)


def main(
    study: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/transfer"),
    workers: int | None = None,
    dask: str | None = None,
) -> None:
    """Answers which pretraining helps which task, which one harms, and whether it should have stopped earlier.

    Args:
        study: a preset, any part of which can be set.
        out: results directory; an interrupted study there goes on.
        workers: runs at a time, default one per core; on a cluster, what the cores of each machine are shared by.
        dask: address of a dask scheduler, such as tcp://host:8786, as for ``compare.py``.
    """
    with nullcontext() if dask is None else cluster(dask) as executor:
        print(transfer(study, out, workers, executor))
    print(f"curves: {out}/runs/transfer.png   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
