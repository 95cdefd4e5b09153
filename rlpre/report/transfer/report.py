"""The report on a study of transfer: what was asked, the scores, verdicts in words and tables."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlpre.errors import RlpreError
from rlpre.files import atomic, read_json, write_json
from rlpre.measure import stats
from rlpre.measure.transfer import (
    LEVEL,
    NEGATIVE,
    NONE,
    POSITIVE,
    UNDECIDED,
    Contrast,
    Ladder,
    Outcome,
    Transfer,
    against,
    transfer,
)
from rlpre.report.tables import Rows, aligned, piped
from rlpre.report.transfer.plots import draw_ladders, log_ladders
from rlpre.report.words import short_names, signed
from rlpre.study import STUDY, Cell, finished_runs

SCORE, SCRATCH = "score.json", "scratch"
Scores = Mapping[Cell, float]
LEGEND = """\
Scores: {score}. Differences are means over n test seeds [95 % interval]; with n<3 there is none.
chosen: the checkpoint, in steps of pretraining, that did best on {first} other seeds; "or scratch" if scratch did as
well there. last: pretraining to its end. Verdicts: one-sided tests of the pairs of seeds in both directions at
{level:g}, corrected over the tasks by Holm; "all" is the mean over the tasks, one test.
"""


@dataclass(frozen=True)
class Question:
    """What a study asks. It stands under "transfer" in the study's configuration, so that no result can choose it.

    Attributes:
        sources: what was pretrained on.
        tasks: what agents were scored on.
        ladder: steps of pretraining whose checkpoints agents started from.
        validation: seeds that choose a checkpoint; all others test it.
        score: what is counted, in words.
    """

    sources: tuple[str, ...]
    tasks: tuple[str, ...]
    ladder: tuple[int, ...]
    validation: tuple[int, ...]
    score: str


@dataclass(frozen=True)
class Findings:
    """What a study found.

    Attributes:
        validation: source -> task -> the scores that chose.
        judged: source -> its verdicts.
        rivals: every source but the first -> what it gains over the first by task, and over all tasks.
        seeds: that tested.
    """

    validation: dict[str, dict[str, Ladder]]
    judged: dict[str, Transfer]
    rivals: dict[str, tuple[dict[str, Contrast], Contrast]]
    seeds: tuple[int, ...]


def arm(source: str, step: int) -> str:
    """The name of the agents that start from a checkpoint."""
    return f"{source}@{step}"


def report(directory: Path) -> str:
    """Judges every source of a study of transfer.

    Writes ``results.json``, ``table.md``, ``transfer.png`` and TensorBoard events (``transfer/``) into the directory.

    Args:
        directory: a study (see `rlpre.study`) whose cells are (task, ``scratch`` or ``source@step``, seed), each with a
            ``score.json``. Its ``study.json`` holds a `Question` under "transfer".

    Returns:
        The tables and then the verdicts, for a terminal.

    Raises:
        RlpreError: if the directory holds no question, or lacks scores of the seeds that choose or of all that test.
    """
    question, scores = load_question(directory), load_scores(directory)
    found = find(scores, question)
    first, *_ = question.sources
    lines = [f"- {source}: {answer(judged)}." for source, judged in found.judged.items()]
    lines += [
        f"- {source} instead of {first}: {signed(overall.gain)} over all tasks, {overall.verdict}."
        for source, (_, overall) in found.rivals.items()
    ]
    said = "\n".join(lines)
    write_json(directory / "results.json", {"answer": said.splitlines(), **as_json(found, scores, question)})
    with atomic(directory / "table.md") as temporary:
        temporary.write_text(f"{said}\n\n{_tables(found, question, piped)}")
    draw_ladders(found.validation, question.score, directory / "transfer.png")
    log_ladders(found.validation, directory / "transfer")
    return f"{_tables(found, question, aligned)}\n{said}"


def load_question(directory: Path) -> Question:
    """The question of a study directory.

    Raises:
        RlpreError: if there is none.
    """
    configuration = read_json(directory / STUDY)
    if "transfer" not in configuration:
        raise RlpreError(f"{directory / STUDY} does not say what is asked: put a transfer entry in its configuration")
    return Question(**configuration["transfer"])


def load_scores(directory: Path) -> dict[Cell, float]:
    """The score of every finished cell."""
    return {cell: float(read_json(run / SCORE)["score"]) for cell, run in finished_runs(directory).items()}


def choosing(scores: Scores, question: Question, source: str) -> dict[str, Ladder]:
    """By task the scores of the seeds that choose, on every rung of a source.

    Raises:
        RlpreError: if one is missing.
    """
    rungs = dict.fromkeys(question.tasks, question.ladder)
    return _ladders(scores, source, rungs, question.validation)


def find(scores: Scores, question: Question) -> Findings:
    """The verdicts on every source, from the seeds that have tested all of them.

    Raises:
        RlpreError: if there are none, or a score of the seeds that choose is missing.
    """
    validation = {source: choosing(scores, question, source) for source in question.sources}
    wanted = {
        source: {task: sorted({ladder.best, ladder.last}) for task, ladder in of.items()}
        for source, of in validation.items()
    }
    cells = {(task, SCRATCH) for task in question.tasks}
    cells |= {(task, arm(name, step)) for name, of in wanted.items() for task, steps in of.items() for step in steps}
    testing = sorted({cell.seed for cell in scores} - set(question.validation))
    seeds = tuple(seed for seed in testing if all(Cell(*cell, seed) in scores for cell in cells))
    if not seeds:
        raise RlpreError("no seed has tested every chosen checkpoint yet: run the study to its end")
    rng = np.random.default_rng(0)
    tested = {name: _ladders(scores, name, of, seeds) for name, of in wanted.items()}
    judged = {name: transfer(validation[name], of, rng) for name, of in tested.items()}
    first, *others = tested
    rivals = {name: against(tested[first], tested[name], rng) for name in others}
    return Findings(validation, judged, rivals, seeds)


def answer(judged: Transfer) -> str:
    """The verdicts on a source in words."""
    names = short_names(judged.tasks)

    def say(what: str, of: Callable[[Outcome], Contrast]) -> str:
        groups = {
            verdict: [names[task] for task, outcome in judged.tasks.items() if of(outcome).verdict == verdict]
            for verdict in (POSITIVE, NEGATIVE, UNDECIDED, NONE)
        }
        return f"{what} {', '.join(f'{verdict} on {_listed(on)}' for verdict, on in groups.items() if on)}"

    early = judged.overall.early
    return "; ".join(
        [
            say("best checkpoint", lambda outcome: outcome.contrasts.best),
            say("last checkpoint", lambda outcome: outcome.contrasts.last),
            f"stopping early gains {signed(early.gain)} over all tasks, {early.verdict}",
        ]
    )


def as_json(found: Findings, scores: Scores, question: Question) -> dict[str, Any]:
    """The content of ``results.json``: verdicts, probabilities and intervals, and every score."""
    return {
        "question": asdict(question),
        "test_seeds": list(found.seeds),
        "sources": {source: _judged(judged) for source, judged in found.judged.items()},
        "instead_of_first": {
            source: {name: _contrast(of) for name, of in {**tasks, "all": overall}.items()}
            for source, (tasks, overall) in found.rivals.items()
        },
        "scores": {str(cell): score for cell, score in scores.items()},
    }


def _contrast(of: Contrast) -> dict[str, Any]:
    return {**asdict(of), "verdict": of.verdict}


def _judged(judged: Transfer) -> dict[str, Any]:
    def each(contrasts: Any) -> dict[str, Any]:
        return {name: _contrast(of) for name, of in vars(contrasts).items()}

    tasks = {
        task: {"chosen": of.chosen, "advised": of.advised, "last": of.last, **each(of.contrasts)}
        for task, of in judged.tasks.items()
    }
    return {"tasks": tasks, "overall": each(judged.overall)}


def _ladders(
    scores: Scores, source: str, rungs: Mapping[str, Collection[int]], seeds: Collection[int]
) -> dict[str, Ladder]:
    def of(task: str, name: str) -> stats.Floats:
        cells = [Cell(task, name, seed) for seed in seeds]
        if missing := [cell for cell in cells if cell not in scores]:
            raise RlpreError(f"{missing[0]} has no score yet: run the study to its end")
        return np.array([scores[cell] for cell in cells])

    return {
        task: Ladder(of(task, SCRATCH), {step: of(task, arm(source, step)) for step in steps})
        for task, steps in rungs.items()
    }


def _tables(found: Findings, question: Question, draw: Callable[[Rows], str]) -> str:
    header = ["source", "chosen", "chosen - scratch", "", "last - scratch", "", "chosen - last", ""]
    parts = []
    for task, name in short_names(question.tasks).items():
        scratch = next(iter(found.validation.values()))[task].scratch.mean()
        rows = [_row(source, judged.tasks[task]) for source, judged in found.judged.items()]
        parts += [f"{name}, scratch {scratch:.2f} in validation, n={len(found.seeds)}", draw([header, *rows])]
    rows = [[source, "", *_cells(vars(judged.overall).values())] for source, judged in found.judged.items()]
    parts += [f"all, mean of {len(question.tasks)} tasks", draw([header, *rows])]
    if found.rivals:
        names = [*short_names(question.tasks).values(), "all"]
        rows = [["source", *(text for name in names for text in (name, ""))]]
        rows += [[source, *_cells((*of.values(), overall))] for source, (of, overall) in found.rivals.items()]
        parts += [f"instead of {question.sources[0]}, both pretrained to their ends", draw(rows)]
    return "\n\n".join([*parts, LEGEND.format(score=question.score, first=len(question.validation), level=LEVEL)])


def _row(source: str, outcome: Outcome) -> list[str]:
    chosen = f"{outcome.chosen}" + ("" if outcome.advised else " or scratch")
    return [source, chosen, *_cells(vars(outcome.contrasts).values())]


def _cells(contrasts: Iterable[Contrast]) -> list[str]:
    return [text for one in contrasts for text in (signed(one.gain), one.verdict)]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
