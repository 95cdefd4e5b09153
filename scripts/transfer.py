"""Measure transfer: ``python scripts/transfer.py quick`` pretrains, starts agents from every checkpoint, and judges."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.transfer import TRANSFERS, transfer
from cli import Where, run

PURPOSES = {
    "smoke": "Tests that everything runs; nothing is learned.",
    "quick": "Four small levels, three sources of frames.",
    "full": "Three other levels, judged by agents instead of clones.",
}
Preset = tyro.extras.subcommand_type_from_defaults(TRANSFERS, PURPOSES)


def main(
    study: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/transfer"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Measures which pretraining helps which task, which one harms, and whether it should have stopped earlier.

    Args:
        study: a preset; every setting of it can be changed.
        out: results directory; an interrupted study there is resumed.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(transfer(study, out, where.workers, executor))
    print(f"page: {out}/runs/report.html   numbers: {out}/runs/summary.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
