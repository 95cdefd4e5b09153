"""Which claims about pretraining hold here? ``python scripts/claims.py`` measures each against its control."""

from pathlib import Path

import tyro

from agents.claims.report import check, write_docs
from cli import Where, run


def main(
    only: tuple[int, ...] = (),
    seeds: int = 5,
    out: Path = Path("runs/claims"),
    docs: bool = False,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Measures claims about pretraining, at the smallest size that can refute them.

    Args:
        only: numbers of claims, such as 3 4; default: all, in about half an hour on two cores.
        seeds: of each measurement.
        out: results directory; what is measured there is not measured again.
        docs: whether to write the table into docs/claims.md too.
        where: processes of this machine, or a cluster.
    """
    with where.executor() as executor:
        print(check(only, out, seeds, where.workers, executor))
    if docs:
        write_docs(out, Path("docs/claims.md"))
    print(f"\npage: {out}/report.html   numbers: {out}/claims.json")


if __name__ == "__main__":
    run(main)
