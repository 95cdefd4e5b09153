"""Is the advice of diagnose.py right? ``python scripts/advice.py runs/full`` asks finished comparisons."""

from dataclasses import asdict
from pathlib import Path

import tyro

from agents.advice import STEPS, contests
from cli import run
from rlpre.files import write_json
from rlpre.measure.advice import WAYS, Contest, HitRate, hit_rates
from rlpre.measure.stats import iqm
from rlpre.report.tables import Rows, aligned
from rlpre.report.words import short_names


def main(studies: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("runs/advice"), steps: int = STEPS) -> None:
    """Diagnoses every encoder of comparisons in every environment, and holds the advice against the learning curves.

    Args:
        studies: directories of compare.py; runs that have not ended are left out.
        out: receives fresh frames of the environments and ``results.json``.
        steps: to collect in each environment.
    """
    found = contests(studies, out, steps)
    rates = hit_rates(found)
    write_json(
        out / "results.json",
        {
            "studies": [str(study) for study in studies],
            "hit_rates": {name: asdict(rate) for name, rate in rates.items()},
            "contests": [_as_json(of) for of in found],
        },
    )
    print(
        f"{aligned(contest_rows(found))}\n\narea under the learning curve, IQM over runs; *: certainly below the best\n"
    )
    print(aligned(rate_rows(rates)))


def contest_rows(found: list[Contest]) -> Rows:
    """One row a contest."""
    names = short_names(dict.fromkeys(of.environment for of in found))
    rows = [["task", "encoder", "advice", "best", *WAYS]]
    for of in found:
        areas = {way: f"{iqm(runs[:, None]):.2f}{'*' * of.worse(way)}" for way, runs in of.areas.items()}
        taken = (of.advised or "-") + ("" if of.taken == of.advised else f", as {of.taken or 'nobody did'}")
        rows.append([names[of.environment], of.objective, taken, of.best, *(areas.get(way, "-") for way in WAYS)])
    return rows


def rate_rows(rates: dict[str, HitRate]) -> Rows:
    """One row for everybody who chooses."""
    rows = [["who chooses", "the best way", "not worse than it", "contests"]]
    return rows + [[name, f"{of.best:.0%}", f"{of.not_worse:.0%}", str(of.contests)] for name, of in rates.items()]


def _as_json(of: Contest) -> dict[str, object]:
    areas = {way: runs.tolist() for way, runs in of.areas.items()}
    return {**asdict(of), "areas": areas, "best": of.best, "taken": of.taken}


if __name__ == "__main__":
    run(main)
