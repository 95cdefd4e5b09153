"""Why a comparison came out as it did, on studies whose curves and features are made by hand."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studies import METRIC, NEVER, results_of, write_study

from rlpre.errors import RlpreError
from rlpre.files import write_json
from rlpre.measure.factorial import two_way
from rlpre.report.comparison.features import Features
from rlpre.report.comparison.report import report
from rlpre.report.comparison.results import Metric
from rlpre.report.comparison.why import cause_sentence, feature_rows, gain_rows, read_why
from rlpre.study import Cell

CORNERS = {"fresh": (0, False), "fresh-white": (0, True), "best": (900, False), "best-white": (900, True)}
ROOMS = Metric(dict.fromkeys(CORNERS, 500), answer="best", baseline="fresh")


def write_features(home: Path, arms: dict[str, Features], seeds: int = 1, env: str = "Door") -> None:
    """Condition numbers differ from seed to seed by a factor of 4, around those given."""
    for arm, of in arms.items():
        for seed in range(seeds):
            cell = Cell(env, arm, seed)
            spread = replace(of, condition=of.condition * 4.0 ** (seed - (seeds - 1) / 2))
            write_json(home / "features" / cell.path / "features.json", asdict(spread))
            write_json(home / "features" / cell.path / "done.json", {**asdict(cell), "seconds": 1.0, "threads": 1})


def known(updates: int = 900, whitened: bool = False, distinct: int | None = 500, score: float = 0.6) -> Features:
    return Features(updates, whitened, distinct, 1.0 if whitened else 4000.0, 15, {"front": score, "carrying": 0.8})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pretraining halves the steps, whitening takes off a quarter."""
    steps = {"fresh": [8000, 8000, 8000], "fresh-white": [6000] * 3, "best": [4000] * 3, "best-white": [3000] * 3}
    write_study(tmp_path / "runs", steps, ROOMS)
    write_features(tmp_path, {arm: known(*of) for arm, of in CORNERS.items()}, seeds=3)
    return tmp_path


def test_causes_are_taken_apart(home: Path) -> None:
    why = read_why(home / "runs", results_of(home / "runs"), ROOMS)
    found = why.causes["Door"]
    assert found.first.value == pytest.approx(2)
    assert found.second.value == pytest.approx(4 / 3)
    assert found.interaction.value == pytest.approx(1)
    assert found.difference.value == pytest.approx(4000 - 3000)
    sentence = cause_sentence(found)
    assert sentence.startswith("pretraining divides the steps by 2.00 [2.00, 2.00], whitening by 1.33 [1.33, 1.33]; ")
    assert why.measured["Door"]["fresh"].condition.value == pytest.approx(4000), "geometric mean over seeds"
    assert why.measured["Door"]["fresh"].condition.low < 1000 < 16_000 < why.measured["Door"]["fresh"].condition.high
    header, fresh, *_ = feature_rows(why.measured["Door"])
    assert dict(zip(header, fresh, strict=True)) | {"condition number": ""} == {
        "arm": "fresh",
        "updates": "0",
        "different frames": "500",
        "whitened": "no",
        "condition number": "",
        "dimensions": "15",
        "front": "0.60",
        "carrying": "0.80",
    }
    assert (why.gains, why.sizes) == ({}, {})


@pytest.mark.parametrize(
    ("steps", "phrase"),
    [
        ([[12, 4], [6, 2]], "their effects multiply and do not add up"),
        ([[12, 8], [6, 2]], "their effects add up and do not multiply"),
        ([[12, 8], [2, 7]], "their effects neither multiply nor add up"),
        ([[5, 5], [5, 5]], "whether their effects multiply or add up is not known"),
    ],
)
def test_how_causes_act_together_in_words(steps: list[list[int]], phrase: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 20, (2, 2, 6))
    times = 1000.0 * np.array(steps)[..., None] + noise - noise.mean(-1, keepdims=True)
    assert phrase in cause_sentence(two_way(times, np.ones(times.shape, bool), rng))
    few = cause_sentence(two_way(times[..., :2], np.zeros((2, 2, 2), bool), rng))
    assert "fewer than 3 seeds do not tell how they act together" in few
    assert few.endswith("; 8 runs never got there and count as their budget")


@pytest.mark.parametrize("change", ["one corner twice", "one corner missing", "no common seed"])
def test_causes_need_one_arm_of_each_kind(change: str, home: Path) -> None:
    metric, runs = ROOMS, home / "runs"
    if change == "one corner twice":
        metric = replace(ROOMS, arms={**ROOMS.arms, "other": 500})
        write_study(runs, {"other": [5000]}, metric)
        write_features(home, {"other": known()})
    for seed in {"one corner missing": (0, 1, 2), "no common seed": (0, 1, 2)}.get(change, ()):
        (runs / Cell("Door", "best", seed).path / "done.json").unlink()
    if change == "no common seed":
        done = runs / Cell("Door", "best", 0).path / "done.json"
        write_json(done, {**asdict(Cell("Door", "best", 7)), "seconds": 1.0, "threads": 1})
    assert not read_why(runs, results_of(runs), metric).causes


def test_report_shows_the_causes(home: Path) -> None:
    shown = report(home / "runs")
    assert "Door: pretraining divides the steps by 2.00" in shown
    assert "condition number" in shown
    assert "Door: pretraining divides" in (home / "runs" / "table.md").read_text()
    content = json.loads((home / "runs" / "results.json").read_text())
    assert content["causes"]["Door"]["first"]["value"] == pytest.approx(2)
    assert content["features"]["Door"]["best-white"]["condition"]["value"] == pytest.approx(1)
    page = (home / "runs" / "report.html").read_text()
    assert "Pretraining divides the steps by 2.00" in page
    assert "<th>condition number" in page
    assert not (home / "runs" / "scaling.png").exists()


def test_report_draws_what_more_frames_bring(tmp_path: Path) -> None:
    sizes = {1000: [9000, NEVER, 9000], 3000: [6000, 7000, 6000], 10_000: [3000] * 3}
    metric = Metric({"scratch": 0, "random": 0, **{f"f{n}": n for n in sizes}}, answer="f10000")
    write_study(tmp_path / "runs", {"scratch": [8000] * 3, "random": [NEVER] * 3}, metric)
    write_study(tmp_path / "runs", {f"f{n}": steps for n, steps in sizes.items()}, metric)
    write_features(tmp_path, {f"f{n}": known(distinct=n, score=n / 12_000) for n in reversed(sizes)})
    write_features(tmp_path, {"random": known(0, distinct=None)}, seeds=3)
    why = read_why(tmp_path / "runs", results_of(tmp_path / "runs"), metric)
    assert why.sizes == {"Door": {n: f"f{n}" for n in sizes}}
    report(tmp_path / "runs")
    assert Image.open(tmp_path / "runs" / "scaling.png").width > 1000
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "probes by frames on Door" in page
    assert "steps by frames on Door" in page


def test_gains_by_task(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_study(runs, {"scratch": [8000, 9000, 8000], "random": [2000] * 3, "best": [2000, 3000, 2000]}, env="A")
    write_study(runs, {"scratch": [2000, 2000, 2000], "random": [9000] * 3, "best": [8000, 9000, 9000]}, env="B")
    write_features(tmp_path, {"best": known(score=0.8), "random": known(0, distinct=None, score=0.4)}, env="A")
    why = read_why(runs, results_of(runs), METRIC)
    header, first, second, last = gain_rows(why.gains, METRIC)
    assert header == ["task", "scratch / best", "random / best", "probes of best", "probes of random"]
    assert first[0] == "A"
    assert first[1].startswith("3.57 [")
    assert first[3:] == ["0.80", "0.60"]
    assert second[3:] == ["-", "-"]
    assert last == ["all", "1 won, 1 lost of 2", "0 won, 0 lost of 2", "", ""]
    assert "| task" in (report(runs) and (runs / "table.md").read_text())
    assert "Gain by task" in (runs / "report.html").read_text()


def test_fresh_weights_that_frames_only_whitened_are_a_control(home: Path) -> None:
    for arm, (updates, whitened) in CORNERS.items():
        write_study(home / "runs", {arm: [2000] * 3}, ROOMS, env="Room")
        write_features(home, {arm: known(updates, whitened)}, env="Room")
    gains = read_why(home / "runs", results_of(home / "runs"), ROOMS).gains
    assert list(gains["Door"].ratios) == list(gains["Room"].ratios) == ["fresh", "fresh-white"]
    assert gains["Door"].ratios["fresh-white"].ratio.value == pytest.approx(6000 / 4000)


def test_damaged_features_are_refused(home: Path) -> None:
    path = home / "features" / Cell("Door", "best", 0).path / "features.json"
    write_json(path, {"updates": 3})
    with pytest.raises(RlpreError, match=r"features\.json is damaged \(.*missing"):
        report(home / "runs")
