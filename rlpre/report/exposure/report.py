"""The report on a study of exposure bias: one call."""

from pathlib import Path

from rlpre.files import atomic, write_json
from rlpre.report.exposure import table
from rlpre.report.exposure.answers import arm_answer, judged, level_answer, overall_answer
from rlpre.report.exposure.board import log_exposure
from rlpre.report.exposure.figures import as_json, summarise
from rlpre.report.exposure.page import write_exposure_page
from rlpre.report.exposure.plots import draw_exposure
from rlpre.report.exposure.results import load_question
from rlpre.report.words import short_names


def report(directory: Path) -> str:
    """Judges what a study of exposure bias found, as far as it has come.

    Writes ``report.html``, ``results.json``, ``table.md``, ``exposure.png`` and TensorBoard events by step
    (``exposure/``) into the directory.

    Args:
        directory: a study (see `rlpre.study`) whose cells are (level, arm, seed). Its ``study.json`` holds a `Question`
            under "exposure", its runs ``contexts.npz`` (see `rlpre.measure.exposure.save_contexts`).

    Returns:
        The tables and then the verdicts, for a terminal.

    Raises:
        RlpreError: if the directory holds no finished run or no question, or its runs do not fit together.
    """
    question = load_question(directory)
    results = summarise(directory, question)
    lines = [str(overall_answer(results, question))]
    if len(results) > 1:
        lines += [f"{name}: {level_answer(results[level], question)}" for level, name in short_names(results).items()]
    lines += [str(arm_answer(arm, results, question)) for arm in judged(question)]
    write_json(directory / "results.json", {"answer": lines, **as_json(results, question)})
    said = "\n".join(lines)
    with atomic(directory / "table.md") as temporary:
        temporary.write_text("\n".join(f"- {line}" for line in lines) + f"\n\n{table.markdown(results, question)}")
    draw_exposure(results, question, directory / "exposure.png")
    log_exposure(results, directory / "exposure")
    write_exposure_page(directory, results, question)
    return f"{table.text(results, question)}\n{said}"
