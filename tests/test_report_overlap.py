"""The overlap of a comparison's frames on its page."""

import html
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from studies import write_study

from agents.compare import Comparison, Offline, measure_overlap
from agents.presets import PRESETS
from envs.overlap import overlaps
from rlpre import FrameStore, RlpreError
from rlpre.files import write_json
from rlpre.measure.overlap import Overlap
from rlpre.measure.stats import Interval
from rlpre.report.comparison.overlap import OVERLAP, read_overlap
from rlpre.report.comparison.report import report

DOOR, LARGER = "MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-6x6-v0"


def comparison(**others: object) -> Comparison:
    quick = replace(PRESETS["quick"], environments=(DOOR, LARGER), data={"mixed": Offline((DOOR,), 300)})
    return replace(quick, **others)


def shown(directory: Path) -> str:
    """The text of the page of a study beside which the overlap stands."""
    runs = write_study(directory / "runs", {"scratch": [8000] * 3, "best": [2000] * 3})
    report(runs)
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", (runs / "report.html").read_text())).split())


def test_a_comparison_measures_once_and_its_page_shows_it(doorkey: FrameStore, tmp_path: Path) -> None:
    measure_overlap(comparison(), {"mixed": doorkey}, tmp_path)
    found = read_overlap(tmp_path)
    assert found == {"mixed": overlaps(doorkey, (DOOR, LARGER), steps=300)}
    written = (tmp_path / OVERLAP).stat().st_mtime_ns
    measure_overlap(comparison(), {"mixed": doorkey}, tmp_path)
    assert (tmp_path / OVERLAP).stat().st_mtime_ns == written
    text = shown(tmp_path)
    assert "task state layout observation 1 cell apart 2 cells apart" in text
    of = found["mixed"][LARGER]
    assert isinstance(of, Overlap)
    assert f"{LARGER} 0.00 [0.00, {of.state.high:.2f}] 0.00 [0.00, {of.layout.high:.2f}]" in text
    assert "cannot be told" not in text


def test_page_says_what_cannot_be_told(doorkey: FrameStore, tmp_path: Path) -> None:
    assert read_overlap(tmp_path) == {}
    measure_overlap(comparison(environments=("MiniGrid-Emty-v0",)), {"mixed": doorkey}, tmp_path)
    some = Overlap(None, None, Interval(0.5, 0.4, 0.6, 9), (), None, "it is a film", 5, 6)
    write_json(tmp_path / OVERLAP, {**read_overlap(tmp_path), "film": {DOOR: asdict(some)}})
    text = shown(tmp_path)
    assert "mixed Not measured: unknown environment 'MiniGrid-Emty-v0'" in text
    assert f"{DOOR} - - 0.50 [0.40, 0.60] - -" in text
    assert "States and layouts cannot be told: it is a film." in text
    write_json(tmp_path / OVERLAP, {"film": {DOOR: {"state": 1}}})
    with pytest.raises(RlpreError, match=r"overlap\.json is damaged \(.*: remove it, and compare again"):
        read_overlap(tmp_path)
