"""The report on a study: one call."""

from pathlib import Path

from rlpre.files import atomic, write_json
from rlpre.report import table
from rlpre.report.curves import draw_curves, log_curves
from rlpre.report.results import as_json, load_metric, load_runs, summarise


def report(directory: Path) -> str:
    """Compares the arms of a study, as far as it has come.

    Writes ``results.json``, ``table.md``, ``curves.png`` and TensorBoard events (``compare/``) into the directory.

    Returns:
        The answer and the tables, for a terminal.

    Raises:
        RlpreError: if the directory holds no finished run or no metric, or its runs do not fit together.
    """
    metric = load_metric(directory)
    results = summarise(load_runs(directory), metric)
    answers = table.answers(results, metric)
    write_json(directory / "results.json", {"answer": answers.splitlines(), **as_json(results, metric)})
    with atomic(directory / "table.md") as temporary:
        temporary.write_text(f"{answers}\n\n{table.markdown(results, metric)}")
    draw_curves(results, metric, directory / "curves.png")
    log_curves(results, directory / "compare")
    return f"{answers}\n\n{table.text(results, metric)}"
