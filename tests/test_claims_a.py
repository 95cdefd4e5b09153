"""Claims: the rule of verdicts, the command, and verdicts that flip when the effect is taken away."""

import re
from pathlib import Path

import numpy as np
import pytest

from agents.claims import (
    CLAIMS,
    anchors,
    collapse,
    exposure,
    grammar,
    landscape,
    parallel,
    report,
    sparse,
)
from agents.claims.claim import Claim, Verdict, answer_of, judge, verdict_from
from rlpre import RlpreError
from rlpre.compare.runner import StudyResult
from rlpre.evaluation.stats import Interval

MINE = {1, 3, 4, 5, 7, 9, 10, 12, 13, 14, 15, 19, 20, 22, 23, 24}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 1, "supported"), (-1, -0.5, "not supported"), (-0.1, 0.1, "not supported"), (-1, 1, "undecided")],
)
def test_a_verdict_needs_an_interval_that_excludes(low: float, high: float, verdict: str) -> None:
    assert verdict_from(Interval((low + high) / 2, low, high, 3), 0.0, 0.2) == verdict
    assert verdict_from(Interval(1.0, None, None, 2), 0.0, 0.2) == "undecided"


def test_every_claim_is_complete_and_has_its_number_once() -> None:
    files = [path for path in Path(report.__file__).parent.glob("*.py") if "CLAIM = Claim(" in path.read_text()]
    assert len(files) == len(CLAIMS)
    assert set(CLAIMS) >= MINE
    for number, claim in CLAIMS.items():
        assert claim.number == number
        assert claim.text.endswith(".")
        assert claim.control
    assert max(len(path.read_text().splitlines()) for path in files) <= 150


def test_studies_are_quoted_from_their_files() -> None:
    assert (
        answer_of("many") == "Pretraining saved environment steps on 1 of 7 tasks and cost steps on 1. (results/many)"
    )
    assert "scratch / jigsaw-frozen: 1.07 [0.71, 1.61] (results/quick)" in answer_of("quick", "jigsaw-frozen")


def planted(directory: Path, seeds: int) -> Verdict:
    return judge(np.arange(seeds) + 1.0, np.arange(seeds) + 0.5, 0.1, "half", "none")


def broken(directory: Path, seeds: int) -> Verdict:
    raise RlpreError("the world ended")


def test_the_command_measures_once_reports_and_writes_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = {7: Claim(7, "Half is more.", planted, "none"), 8: Claim(8, "It works.", broken, "none")}
    monkeypatch.setattr(report, "CLAIMS", claims)
    monkeypatch.setattr(report, "run_study", _in_this_process)
    printed = report.check((), tmp_path / "out", seeds=3)
    assert "Of 2 claims: 1 supported, 1 failed." in printed
    assert re.search(r"figure: +0\.50 \[0\.50, 0\.50\]", printed)
    assert "the world ended" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img") == 1
    assert "python scripts/claims.py --only 7" in page
    docs = tmp_path / "claims.md"
    docs.write_text(f"# Claims\n\n{report.MARK}old table\n")
    report.write_docs(tmp_path / "out", docs)
    assert (
        "| 7. Half is more. | 0.50 [0.50, 0.50] | supported | `python scripts/claims.py --only 7` |" in docs.read_text()
    )
    assert "**7. Half is more.** Supported.\n\n- what was measured: half\n- control: none" in docs.read_text()
    assert "old" not in docs.read_text()
    docs.write_text("# Claims\n")
    with pytest.raises(RlpreError, match="has no line"):
        report.write_docs(tmp_path / "out", docs)
    for numbers, seeds, message in (((99,), 3, "no claim 99"), ((7,), 0, "seeds is 0")):
        with pytest.raises(RlpreError, match=message):
            report.check(numbers, tmp_path / "out", seeds)


def test_a_claim_without_support_says_what_would_be_needed() -> None:
    claim = Claim(7, "Half is more.", planted, "none", needs="a miracle")
    for verdict, (value, low, high), needed in (
        ("supported", (1.0, 0.5, 1.5), ""),
        ("undecided", (1.0, -1.0, 3.0), "about 20 seeds, if the mean stays 1.00"),
        ("undecided", (-0.1, -1.0, 0.8), "a miracle"),
        ("not supported", (0.01, -0.1, 0.02), "a miracle"),
    ):
        entry = {"verdict": verdict, "figure": {"value": value, "low": low, "high": high, "n": 5}}
        assert report.needed(claim, entry) == needed


def _in_this_process(directory, runs, work, *_, **__):
    failed = {}
    for run in runs:
        (directory / run.path).mkdir(parents=True, exist_ok=True)
        try:
            work(run, directory / run.path, lambda steps: None)
        except RlpreError as error:
            failed[run] = str(error)
    return StudyResult(tuple(runs), failed)


# Each claim at a tiny size: supported with the effect, and not without it.


def verdicts(measure, tmp_path: Path, effect: dict, none: dict, seeds: int = 3, **size: object) -> tuple[str, str]:
    return tuple(
        measure(tmp_path / name, seeds, **arguments, **size).verdict
        for name, arguments in (("with", effect), ("without", none))
    )


def test_anchors(tmp_path: Path) -> None:
    assert anchors.measure(tmp_path, 5).verdict == "supported"
    assert anchors.measure(tmp_path, 5, away=3.0).verdict == "not supported"  # priors that know nothing


def test_grammar(tmp_path: Path) -> None:
    size = {"kinds": ("protein",), "steps": 150}
    assert grammar.measure(tmp_path, 1, **size).figure.value > 0.04
    assert grammar.measure(tmp_path, 3, grammar=False, **size | {"steps": 5}).verdict == "not supported"


def test_landscape() -> None:
    rng = np.random.default_rng(0)
    white = rng.standard_normal((500, 8))
    plain = white * np.logspace(0, -2, 8)
    target = white @ rng.standard_normal((8, 3))
    rotated = plain @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    start, shape, rotation = landscape.savings(
        {"fresh": plain, "plain": plain, "white": white, "rotated": rotated}, target
    )
    assert start == shape > 5
    assert rotation == 0
    start, shape, _ = landscape.savings({"fresh": white, "plain": white, "white": white, "rotated": white}, target)
    assert start == shape == 0


def test_collapse(tmp_path: Path) -> None:
    found = verdicts(collapse.measure, tmp_path, {}, {"fixture": "contrastive"}, steps=60)
    assert found == ("supported", "not supported")


def test_exposure(tmp_path: Path) -> None:
    assert verdicts(exposure.measure, tmp_path, {}, {"own": False}) == ("supported", "not supported")


def test_sparse(tmp_path: Path) -> None:
    with_effect, without = verdicts(sparse.measure, tmp_path, {"planted": True}, {}, steps=3)
    assert with_effect == "supported"
    assert without != "supported"


def test_parallel(tmp_path: Path) -> None:
    size = {"steps": 250, "frames": 6000, "pairs": ("day - top-down",)}
    gains = [parallel.measure(tmp_path, 2, shuffled=shuffled, **size).figure.value for shuffled in (False, True)]
    assert gains[0] > 0.15 > 0.1 > gains[1]
