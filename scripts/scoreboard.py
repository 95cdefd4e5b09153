"""Rank objectives: ``python scripts/scoreboard.py MiniGrid-DoorKey-6x6-v0`` pretrains, probes, and reports."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.scoreboard import Scoreboard, scoreboard
from cli import Where, run


def main(
    study: Annotated[tyro.conf.OmitArgPrefixes[Scoreboard], tyro.conf.arg(name="")],
    out: Path = Path("runs/scoreboard"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Pretrains every objective on the same frames of each world and probes what a policy must know.

    Args:
        study: the worlds, and settings.
        out: results directory; an interrupted scoreboard there is resumed.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(scoreboard(study, out, where.workers, executor))
    print(f"page: {out}/runs/report.html   numbers: {out}/runs/summary.json")


if __name__ == "__main__":
    run(main)
