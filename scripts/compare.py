"""Compare agents: ``python scripts/compare.py quick`` collects, pretrains, trains every arm, and reports."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.compare import compare
from agents.presets import PRESETS
from cli import Where, run

Preset = tyro.extras.subcommand_type_from_defaults(PRESETS)


def main(
    comparison: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/compare"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Answers how many environment steps pretraining saves.

    Args:
        comparison: a preset, any part of which can be set.
        out: results directory; an interrupted comparison there goes on.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(compare(comparison, out, where.workers, executor))
    print(f"page: {out}/runs/report.html   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
