"""Measure exposure bias: ``python scripts/exposure.py quick`` clones an expert, corrects the clones, and judges."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tyro

from agents.exposure import expose
from agents.exposure_presets import EXPOSURES
from cli import run
from rlpre.cluster import cluster

Preset = tyro.extras.subcommand_type_from_defaults(EXPOSURES)


def main(
    study: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/exposure"),
    workers: int | None = None,
    dask: str | None = None,
) -> None:
    """Answers how much worse a cloned policy acts on its own than after its expert, and what cures it.

    Args:
        study: a preset, any part of which can be set.
        out: results directory; an interrupted study there goes on.
        workers: runs at a time, default one per core; on a cluster, what the cores of each machine are shared by.
        dask: address of a dask scheduler, such as tcp://host:8786, as for ``compare.py``.
    """
    with nullcontext() if dask is None else cluster(dask) as executor:
        print(expose(study, out, workers, executor))
    print(f"page: {out}/runs/report.html   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
