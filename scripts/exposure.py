"""Measure exposure bias: ``python scripts/exposure.py quick`` clones an expert, corrects the clones, and judges."""

from pathlib import Path
from typing import Annotated

import tyro

from agents.exposure import EXPOSURES, expose
from cli import Where, run

PURPOSES = {
    "smoke": "Tests that everything runs; nothing is learned.",
    "quick": "One level.",
    "objectives": "Masked or autoregressive pretraining of the sequence encoder?",
    "reinforced": "Does PPO cure exposure bias where it learns?",
    "full": "Five levels.",
    "labels": "Do more labels cure it?",
}
Preset = tyro.extras.subcommand_type_from_defaults(EXPOSURES, PURPOSES)


def main(
    study: Annotated[Preset, tyro.conf.arg(name="")],
    out: Path = Path("runs/exposure"),
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Measures how much worse a cloned policy acts on its own than in its expert's contexts, and what corrects it.

    Args:
        study: a preset; every setting of it can be changed.
        out: results directory; an interrupted study there is resumed.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(expose(study, out, where.workers, executor))
    print(f"page: {out}/runs/report.html   numbers: {out}/runs/summary.json   tensorboard --logdir {out}")


if __name__ == "__main__":
    run(main)
