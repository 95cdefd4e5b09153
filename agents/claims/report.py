"""Measures claims and reports them: a table, a page with pictures, and the table of ``docs/claims.md``."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from agents.claims import CLAIMS
from agents.claims.claim import Claim
from rlpre.compare.runner import Measurements, Run, run_study
from rlpre.errors import RlpreError
from rlpre.evaluation.page import (
    Figure,
    Gallery,
    Page,
    Section,
    Table,
    Toned,
    as_png,
    show_interval,
    write_html,
)
from rlpre.evaluation.stats import Interval
from rlpre.utils import read_json, write_bytes, write_json

ARM, VERDICT, PICTURE = "claim", "verdict.json", "picture.png"
TONES = {"supported": "good", "not supported": "bad", "failed": "bad"}
HEAD = ("claim", "what was measured", "figure", "control", "verdict", "larger study", "what would be needed", "command")
SHORT = ("claim", "figure", "verdict", "command")  # in the table of the docs, which has the rest below
MARK = "<!-- the rest is written by: python scripts/claims.py --docs True -->\n"
QUESTION = "Which claims about pretraining hold here?"

Entry = dict[str, Any]  # fields of a `Verdict`, or of a claim that failed: "verdict" and "measured"


def check(
    numbers: Sequence[int], out: Path, seeds: int, workers: int | None = None, executor: Executor | None = None
) -> str:
    """Measures the claims that are not measured yet, and writes ``report.html`` and ``claims.json``.

    Args:
        numbers: of the claims; empty: all.
        out: results directory; a claim that was measured there with as many seeds is not measured again.
        seeds: of each measurement; fewer than 3 give no interval and no verdict.
        workers: claims measured at a time.
        executor: see `rlpre.compare.runner.run_study`.

    Returns:
        The table for a terminal.

    Raises:
        RlpreError: for an unknown number, no seeds, or an ``out`` with another number of seeds.
    """
    if unknown := sorted(set(numbers) - set(CLAIMS)):
        raise RlpreError(f"there is no claim {unknown[0]}: choose among {', '.join(map(str, CLAIMS))}")
    if seeds < 1:
        raise RlpreError(f"seeds is {seeds}: give at least 3, fewer give no interval")
    runs = {number: Run(f"{number:02d}", ARM, 0) for number in numbers or CLAIMS}
    configuration, steps = {"study": "claims", "seeds": seeds}, {run.task: 1 for run in runs.values()}
    work = partial(_measure, seeds=seeds)
    result = run_study(out, list(runs.values()), work, configuration, steps, workers=workers, executor=executor)
    entries = {
        number: {"verdict": "failed", "measured": result.failed[run]}
        if run in result.failed
        else read_json(out / run.path / VERDICT)
        for number, run in runs.items()
    }
    write_json(out / "claims.json", {f"{number}": entry for number, entry in entries.items()})
    pictures = {number: out / run.path / PICTURE for number, run in runs.items() if run not in result.failed}
    page = _page(entries, pictures)
    write_html(page, out / "report.html")
    return "\n\n".join([page.answer, *map(_as_text, _rows(entries))])


def write_docs(out: Path, path: Path) -> None:
    """Puts the results in ``out`` behind the mark in a Markdown file: a short table, then what was measured."""
    entries = {int(number): entry for number, entry in read_json(out / "claims.json").items()}
    above, mark, _ = path.read_text().partition(MARK)
    if not mark:
        raise RlpreError(f"{path} has no line {MARK.strip()!r}: put it where the table belongs")
    rows = [dict(zip(HEAD, row, strict=True)) for row in _rows(entries)]
    lines = [_answer(entries), "", f"| {' | '.join(SHORT)} |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['claim']} | {row['figure']} | {row['verdict']} | `{row['command']}` |" for row in rows]
    for row in rows:
        rest = [f"- {name}: {cell}" for name, cell in row.items() if cell and name not in SHORT]
        lines += ["", f"**{row['claim']}** {row['verdict'].capitalize()}.", "", *rest]
    write_bytes(path, "\n".join([above + mark, *lines, ""]).encode())


def _measure(run: Run, path: Path, report: Callable[[int], None], *, seeds: int) -> Measurements:
    torch.set_num_threads(1)  # as many as with other workers, for the same numbers; small tensors need no more
    found = CLAIMS[int(run.task)].measure(path, seeds)
    if found.picture is not None:
        write_bytes(path / PICTURE, as_png(found.picture))
    entry = {name: getattr(found, name) for name in ("control", "verdict", "measured")}
    write_json(path / VERDICT, {**entry, "figure": asdict(found.figure)})
    ends = {name: getattr(found.figure, name) for name in ("value", "low", "high")}
    return {name: end for name, end in ends.items() if end is not None}


def _rows(entries: dict[int, Entry]) -> list[list[str]]:
    rows = []
    for number, entry in entries.items():
        claim, verdict = CLAIMS[number], entry["verdict"]
        figure = show_interval(Interval(**entry["figure"])) if "figure" in entry else "-"
        control = entry.get("control") or claim.control
        command = f"python scripts/claims.py --only {number}"
        text = f"{number}. {claim.text}"
        rows.append([text, entry["measured"], figure, control, verdict, claim.study, needed(claim, entry), command])
    return rows


def needed(claim: Claim, entry: Entry) -> str:
    """What a claim without support would need; more seeds only if the interval would then exclude no effect."""
    if entry["verdict"] in ("supported", "failed"):
        return ""
    figure = Interval(**entry["figure"])
    if entry["verdict"] == "undecided" and figure.low is not None and figure.value > 0:
        times = ((figure.value - figure.low) / figure.value) ** 2
        return f"about {math.ceil(figure.n * times)} seeds, if the mean stays {figure.value:.2f}"
    return claim.needs


def _as_text(row: Sequence[str]) -> str:
    """A row for a terminal, below each other: the cells are too long for columns."""
    claim, *cells = row
    named = zip(HEAD[1:], cells, strict=True)
    return "\n".join([claim, *(f"    {name + ':':22}{cell}" for name, cell in named if cell)])


def _answer(entries: dict[int, Entry]) -> str:
    verdicts = [entry["verdict"] for entry in entries.values()]
    counted = ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys(verdicts))
    return f"Of {len(verdicts)} claims: {counted}."


def _page(entries: dict[int, Entry], pictures: dict[int, Path]) -> Page:
    drawn = [
        Figure(f"{number}. {CLAIMS[number].text}", path.read_bytes(), entries[number]["measured"])
        for number, path in pictures.items()
        if path.exists()
    ]
    at = HEAD.index("verdict")
    rows = [[*row[:at], Toned(row[at], TONES.get(row[at], "soft")), *row[at + 1 :]] for row in _rows(entries)]
    blocks = [Table(HEAD, rows), Gallery(drawn)]
    notes = ["Figures are means over seeds with 95 % intervals; a gain is over the control, computed seed by seed."]
    return Page(QUESTION, _answer(entries), sections=[Section("Claims", notes, blocks)])
