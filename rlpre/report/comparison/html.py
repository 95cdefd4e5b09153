"""A comparison as one web page that stands alone."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup

from rlpre.errors import RlpreError
from rlpre.report import facts
from rlpre.report.comparison import charts
from rlpre.report.comparison.answers import COST, SAVED, reached, verdict
from rlpre.report.comparison.curves import treated
from rlpre.report.comparison.overall import Overall
from rlpre.report.comparison.overlap import columns, read_overlap
from rlpre.report.comparison.page import PAGE
from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.comparison.scaling import scaling_charts
from rlpre.report.comparison.why import Why, cause_sentence, feature_rows, gain_rows
from rlpre.report.page import write_page
from rlpre.report.words import Answer, short_names, show_interval, show_ratio, thousands
from rlpre.study import Cell

T = TypeVar("T")
MOST_BYTES = 500_000  # of a film


@dataclass(frozen=True)
class Film:
    """The film of a run's final policy, empty if it is too large, and the return of that run's last evaluation."""

    arm: str
    seed: int
    final: float
    megabytes: float
    content: bytes


def write_html(
    directory: Path,
    results: Results,
    overall: dict[str, Overall],
    answers: dict[str, Answer],
    metric: Metric,
    why: Why,
) -> None:
    """Writes ``report.html``, which loads nothing: what it shows of other files it holds.

    Args:
        directory: the study. Beside it ``frames`` (frame stores), ``encoders`` (a study of pretraining) and
            ``overlap.json`` are looked for; without the first two the page says so. A run may hold ``run.json`` and the
            film ``policy.gif``.
        results: the figures by environment.
        overall: the figures over all environments.
        answers: the sentence to begin with, then one per environment.
        metric: what the study asks.
        why: what is known of the causes.
    """
    home = directory.resolve().parent
    data, data_problem = _attempt(lambda: facts.read_data(home / facts.FRAMES))
    pretrained, pretrained_problem = _attempt(lambda: facts.read_pretrained(home / "encoders"))
    overlap, overlap_problem = _attempt(lambda: read_overlap(home))
    failed = {"encoders": facts.read_failed(home / "encoders"), "runs": facts.read_failed(directory)}
    content = {
        "results": results,
        "overall": overall,
        "answers": answers,
        "metric": metric,
        "lead": next(iter(answers.values())),
        "threshold": f"{metric.threshold:g}",
        "names": short_names(results),
        "budgets": {environment: next(iter(arms.values())).runs.steps[-1] for environment, arms in results.items()},
        "runs": sum(len(figures.runs.seeds) for arms in results.values() for figures in arms.values()),
        "reach": charts.span(figures.ratio for arms in results.values() for figures in arms.values()),
        "profile_charts": _profiles(overall, metric),
        "films": {env: _films(directory, arms) for env, arms in results.items()},
        "missing": _missing(results, metric),
        "failed": {f"{kind}/{run}": error for kind, runs in failed.items() for run, error in runs.items()},
        "unfinished": facts.count_unfinished(directory),
        "data": data,
        "seen": {environment for of in (data or {}).values() for environment in of.environments},
        "data_problem": data_problem,
        "pretrained": pretrained,
        "pretrained_problem": pretrained_problem or f"{home / 'encoders'} holds no finished encoder",
        "labels": list(dict.fromkeys(label for of in pretrained or [] for label in (*of.probes, *of.control))),
        "overlap": {"all": overlap_problem} if overlap_problem else overlap,
        "provenance": facts.read_provenance(directory),
        "why": why,
    }
    write_page(directory, PAGE, _TOOLS, content)


def _profiles(overall: dict[str, Overall], metric: Metric) -> list[Markup]:
    scores = {
        "area under the learning curve": {arm: of.areas for arm, of in overall.items()},
        "final return": {arm: of.finals for arm, of in overall.items()},
    }
    return [charts.profile(of, score, metric) for score, of in scores.items()] if overall else []


def _films(directory: Path, arms: dict[str, Figures]) -> list[Film]:
    """The film of the first seed that has one, of each arm."""
    films = []
    for arm, figures in arms.items():
        runs = figures.runs
        for seed, final in zip(runs.seeds, runs.finals, strict=True):
            path = directory / Cell(runs.environment, arm, seed).path / facts.FILM
            if path.exists():
                size = path.stat().st_size
                content = path.read_bytes() if size <= MOST_BYTES else b""
                films.append(Film(arm, seed, float(final), size / 1e6, content))
                break
    return films


def _missing(results: Results, metric: Metric) -> list[str]:
    """Arms without a finished run, by environment."""
    names = short_names(results)
    lacking = {names[env]: [arm for arm in metric.arms if arm not in arms] for env, arms in results.items()}
    return [f"{', '.join(arms)} on {environment}" for environment, arms in lacking.items() if arms]


def _attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What was read, or why it was not: facts that are missing or damaged are no reason to withhold the answer."""
    try:
        return read(), ""
    except RlpreError as error:
        return None, str(error)


_TOOLS: dict[str, Any] = {
    "tone": lambda found: {SAVED: "saved", COST: "cost"}.get(found, "open"),
    "base64": lambda content: base64.b64encode(content).decode(),
    "verdict": verdict,
    "short_names": short_names,
    "reached": reached,
    "show_ratio": show_ratio,
    "show_interval": show_interval,
    "thousands": thousands,
    "treated": treated,
    "swatch": charts.swatch,
    "strip": charts.strip,
    "overview": charts.overview,
    "against_baseline": charts.against_baseline,
    "overlap_columns": columns,
    "feature_rows": feature_rows,
    "gain_rows": gain_rows,
    "cause_sentence": cause_sentence,
    "scaling_charts": scaling_charts,
}
