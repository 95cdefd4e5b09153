"""The report on a study: one call."""

from pathlib import Path

from rlpre.files import atomic, write_json
from rlpre.report.comparison import table
from rlpre.report.comparison.answers import answers
from rlpre.report.comparison.board import log_comparison
from rlpre.report.comparison.curves import draw_curves
from rlpre.report.comparison.html import write_html
from rlpre.report.comparison.overall import summarise_overall
from rlpre.report.comparison.results import as_json, load_metric, load_runs, summarise
from rlpre.report.comparison.scaling import draw_scaling
from rlpre.report.comparison.why import causes, read_why, tables
from rlpre.report.tables import aligned, piped


def report(directory: Path) -> str:
    """Compares the arms of a study, as far as it has come.

    Writes ``report.html`` (see `html.write_html`), ``results.json``, ``table.md``, ``curves.png``,
    ``scaling.png`` where arms differ in their number of frames, and TensorBoard events (``compare/``).

    Returns:
        The answers and the tables, for a terminal.

    Raises:
        RlpreError: if the directory holds no finished run or no metric, or its runs do not fit together.
    """
    metric = load_metric(directory)
    results = summarise(load_runs(directory), metric)
    overall = summarise_overall(results, metric)
    found = answers(results, overall, metric)
    lines = [f"{name}: {answer}" for name, answer in found.items()]
    content = as_json(results, metric)
    if len(results) > 1:
        content["overall"] = {arm: of.as_json() for arm, of in overall.items()}
    why = read_why(directory, results, metric)
    write_json(directory / "results.json", {"answer": lines, **content, **why.as_json()})
    said = "\n".join([*lines, *causes(why)])
    with atomic(directory / "table.md") as temporary:
        parts = [said, table.markdown(results, overall, metric), *tables(why, metric, piped)]
        temporary.write_text("\n\n".join(parts))
    if why.sizes:
        draw_scaling(results, why, metric, directory / "scaling.png")
    draw_curves(results, metric, directory / "curves.png")
    log_comparison(results, metric, directory / "compare")
    write_html(directory, results, overall, found, metric, why)
    return "\n\n".join([said, table.text(results, overall, metric), *tables(why, metric, aligned)])
