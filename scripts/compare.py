"""Compare agents: ``python scripts/compare.py quick`` collects, pretrains, trains every arm, and reports."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.compare import compare
from agents.presets import PRESETS
from cli import run

Preset = tyro.extras.subcommand_type_from_defaults(PRESETS)


def main(
    comparison: Annotated[Preset, tyro.conf.arg(name="")], out: Path = Path("runs/compare"), workers: int | None = None
) -> None:
    """Answers how many environment steps pretraining saves.

    Args:
        comparison: a preset, any part of which can be set.
        out: results directory; an interrupted comparison there goes on.
        workers: runs at a time, default one per core.
    """
    print(compare(comparison, out, workers))
    print(f"curves: {out}/runs/curves.png   figures: {out}/runs/results.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
