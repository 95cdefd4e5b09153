"""Measure transfer: ``python scripts/transfer.py quick`` pretrains, starts agents from every checkpoint, and judges."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.transfer import transfer
from agents.transfer_presets import TRANSFERS
from cli import Where, run

Preset = tyro.extras.subcommand_type_from_defaults(TRANSFERS)


def main(
    study: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/transfer"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Answers which pretraining helps which task, which one harms, and whether it should have stopped earlier.

    Args:
        study: a preset, any part of which can be set.
        out: results directory; an interrupted study there goes on.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(transfer(study, out, where.workers, executor))
    print(f"curves: {out}/runs/transfer.png   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
