"""The published results follow from the published rows."""

import json
from pathlib import Path

import pytest

from rlpre.compare.report import answers, report
from rlpre.compare.summary import ALL, read_results

RESULTS = Path(__file__).parents[1] / "results"
STUDIES = sorted(path.parent for path in RESULTS.glob("*/study.json") if "metric" in json.loads(path.read_text()))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_summary_follows_from_rows(study):
    published, results = json.loads((study / "summary.json").read_text()), read_results(study)
    assert len(published["records"]) == len(results.records)
    for there, here in zip(published["records"], results.records, strict=True):
        assert there.keys() == here.flat().keys()
        for name, value in here.flat().items():
            assert there[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
    answer = next(iter(answers(results).values()))
    assert published["answer"].lower() == f"{answer.claim}.".lower()


def test_a_published_study_can_be_shown_again(tmp_path):
    for name in ("study.json", "rows.json"):
        (tmp_path / name).write_bytes((RESULTS / "quick" / name).read_bytes())
    assert report(tmp_path).startswith("Pretraining saved 4.1k environment steps.")
    assert (tmp_path / "report.html").exists()


def test_all_studies_are_published():
    names = " ".join(study.name for study in STUDIES)
    habits = "habits habits-distract habits-features habits-features-distract habits-home habits-long habits-players"
    headrooms = "headroom headroom-defend headroom-health headroom-home"
    strengths = "strength-0 strength-25 strength-50 strength-75"
    others = f"many memory quick scaling {strengths} study study-6x6 study-random-values why"
    assert names == f"ablation clean doom eyes full {habits} {headrooms} {others}"
    overall = read_results(RESULTS / "many").record(ALL, "temporal+inverse-whitened", "random-frozen")
    assert overall is not None
    assert overall.ratio is not None
    assert overall.ratio.ratio.low > 1
