"""Reports on studies whose curves are made by hand."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from studies import METRIC, NEVER, STEPS, results_of, write_run, write_study

from rlpre.errors import RlpreError
from rlpre.files import write_json
from rlpre.report.comparison import table
from rlpre.report.comparison.answers import answer, answers
from rlpre.report.comparison.curves import style
from rlpre.report.comparison.report import report
from rlpre.report.comparison.results import Metric, load_runs
from rlpre.report.words import short_names
from rlpre.study import Cell


def test_figures_by_hand(tmp_path):
    # Seed 10 sorts after seed 2, not before it.
    write_study(tmp_path, {"scratch": [6000, 8000, NEVER], "best": [2000, 2000]})
    write_run(tmp_path, Cell("Door", "best", 10), 8000)
    arms = results_of(tmp_path)["Door"]
    assert list(arms) == ["scratch", "best"]
    best = arms["best"]
    assert best.runs.seeds == (0, 1, 10)
    assert best.reached_at == (2000, 2000, 8000)
    assert arms["scratch"].reached_at == (6000, 8000, None)
    assert best.mean_steps.value == pytest.approx(4000)
    assert best.final.value == pytest.approx(0.95)
    assert arms["scratch"].final.value == pytest.approx((0.95 + 0.95 + 0.2) / 3)
    # Seeds 0 and 1: half a trapezoid of 0.2 and 0.95, then 8 of 0.95; seed 10: 6 of 0.2, the half, 2 of 0.95; of 9.
    areas = [(0.575 + 8 * 0.95) / 9, (0.575 + 8 * 0.95) / 9, (6 * 0.2 + 0.575 + 2 * 0.95) / 9]
    assert best.area.value == pytest.approx(np.mean(areas))
    assert best.ratio.ratio.value == pytest.approx((6000 + 8000 + 10_000) / 12_000)
    assert (best.ratio.bound, best.ratio.baseline_reached, best.ratio.treated_reached) == (">=", 2, 3)
    # Of nine pairs, best wins all but 8000 against 6000, and ties 8000 against 8000.
    assert best.improvement.value == pytest.approx(7.5 / 9)
    assert (arms["scratch"].ratio, arms["scratch"].improvement) == (None, None)
    assert [point.value for point in best.curve] == pytest.approx([0.2] + [0.7] * 6 + [0.95] * 3)


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        (
            {"scratch": [8000, 9000, 10_000], "best": [2000, 3000, 4000]},
            "pretraining saved 6k environment steps: to reach 0.8, scratch needs 3.00 [",
        ),
        ({"scratch": [9000, NEVER, NEVER], "best": [2000, 2000, 3000]}, "pretraining saved at least 7.33k"),
        ({"scratch": [2000, 3000, 4000], "best": [8000, 9000, 10_000]}, "pretraining cost 6k environment steps"),
        ({"scratch": [2000, 2000, 3000], "best": [9000, NEVER, NEVER]}, "pretraining cost at least 7.33k"),
        ({"scratch": [2000, 3000, 9000], "best": [1000, 4000, 8000]}, "not known, the interval does not exclude 1"),
        # 10 / 4 is above 1 only because the run that never reaches counts as the budget.
        ({"scratch": [10_000] * 5, "best": [3000, 3000, 2000, 2000, NEVER]}, "not known"),
        (
            {"scratch": [NEVER] * 3, "best": [NEVER] * 3},
            "no answer, no run of scratch or best reached 0.8 in 10k steps",
        ),
        ({"scratch": [8000, 9000], "best": [2000, 3000]}, "no answer, fewer than 3 runs"),
        ({"scratch": [8000, 9000, 9000]}, "no answer, best has no finished run"),
        ({"best": [8000, 9000, 9000], "random": [1000]}, "no answer, scratch has no finished run"),
    ],
)
def test_answers(tmp_path, arms, sentence):
    (answer,) = map(str, answers(results_of(write_study(tmp_path, arms)), {}, METRIC).values())
    assert answer.startswith(sentence)
    assert answer.endswith(".")
    assert ("after 60k offline frames" in answer) == answer.startswith(("pretraining", "not known"))


def test_table(tmp_path):
    arms = {"scratch": [8000, 9000, NEVER], "random": [NEVER] * 3, "jigsaw": [5000], "best": [2000, 3000, 4000]}
    results = results_of(write_study(tmp_path, arms))
    title, _, header, rule, *rows = table.text(results, {}, METRIC).splitlines()[:8]
    assert title == "Door, 10k steps"
    starts = [
        header.index(name) for name in ("n ", "final", "area", "steps to 0.8", "reached", "ratio", "P(", "frames")
    ]
    assert len(rule) >= len(header)
    for row in rows:
        assert all(row[start - 1] == " " and row[start] != " " for start in starts)
    assert rows[0].split()[:2] == ["scratch", "3"]
    assert "2/3" in rows[0]
    assert ">=9k [" in rows[0]
    assert "? (none reach)" not in rows[1]  # scratch reaches it, so that the ratio says something
    assert "5k (n<3)" in rows[2]
    assert rows[2].endswith("0.5k    1.5")
    assert ">=3.00 [" in rows[3]
    assert ", inf]" in rows[3]
    piped = table.markdown(results, {}, METRIC)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in piped.splitlines() if line[:1] == "|"]
    assert [" ".join(" ".join(row).split()) for row in cells[2:]] == [" ".join(row.split()) for row in rows]


def test_report_writes_everything(tmp_path):
    arms = {"scratch": [8000, 9000, NEVER], "jigsaw": [5000], "best": [2000, 3000, 4000]}
    write_study(tmp_path, arms)
    write_study(tmp_path, arms, env="Bench/Key")
    shown = report(tmp_path)
    overall, key, door = shown.splitlines()[:3]
    assert overall.startswith("overall: pretraining saved environment steps on 2 of 2 tasks: saved on Key, Door; ")
    assert key.startswith("Bench/Key: pretraining saved")
    assert door.startswith("Door: pretraining saved")
    page = (tmp_path / "report.html").read_bytes()
    assert report(tmp_path) == shown  # no chance in it
    assert (tmp_path / "report.html").read_bytes() == page
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["answer"] == [overall, key, door]
    best = content["environments"]["Door"]["best"]
    assert (best["seeds"], best["reached_at"], best["offline_frames"]) == ([0, 1, 2], [2000, 3000, 4000], 60_000)
    assert np.shape(best["returns"]) == (3, 10)
    assert best["seconds"] == [90.0] * 3
    assert content["environments"]["Door"]["jigsaw"]["final_return"]["low"] is None
    assert (tmp_path / "table.md").read_text().startswith(shown.splitlines()[0])
    assert "All 2 tasks" in shown
    assert content["overall"]["best"]["seeds"] == [0, 1, 2]


def test_picture_shows_every_arm_in_its_colour(tmp_path):
    write_study(tmp_path, {"scratch": [8000, 9000, NEVER], "jigsaw": [5000, 6000], "best": [2000, 3000, 4000]})
    report(tmp_path)
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    for arm in ("scratch", "jigsaw", "best"):
        colour = [int(style(arm, METRIC)[0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == colour).all(axis=1).sum() > 1000
    assert len({style(arm, METRIC) for arm in METRIC.arms}) == len(METRIC.arms)


def test_runs_with_other_evaluation_steps_are_refused(tmp_path):
    write_study(tmp_path, {"scratch": [5000]})
    write_run(tmp_path, Cell("Other", "scratch", 0), 300, STEPS // 10)  # another environment may
    assert len(load_runs(tmp_path)) == 2
    write_run(tmp_path, Cell("Door", "scratch", 1), 5000, STEPS[:-1])
    with pytest.raises(RlpreError, match=r"scratch/seed-1 was evaluated at 9 points up to 9000 steps, .*seed-0 at 10"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "evaluations.npz is missing: the run must write"),
        (b"PK half a file", "evaluations.npz is damaged"),
        ({"timesteps": STEPS}, "evaluations.npz is damaged"),
        ({"timesteps": STEPS, "results": np.full((10, 2), np.nan)}, "not finite"),
    ],
)
def test_bad_evaluations_are_refused(tmp_path, content, message):
    path = write_run(tmp_path, Cell("Door", "scratch", 0), 5000) / "evaluations.npz"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        np.savez(path, **content)
    with pytest.raises(RlpreError, match=message):
        load_runs(tmp_path)


def test_study_without_runs_or_metric_is_refused(tmp_path):
    with pytest.raises(RlpreError, match=r"study\.json is missing"):
        report(tmp_path)
    write_json(tmp_path / "study.json", {})
    with pytest.raises(RlpreError, match="has no metric"):
        report(tmp_path)
    write_json(tmp_path / "study.json", {"metric": asdict(METRIC)})
    with pytest.raises(RlpreError, match="holds no finished run"):
        report(tmp_path)
    write_run(tmp_path, Cell("Door", "jigsow", 0), 5000)
    with pytest.raises(RlpreError, match="unknown arm 'jigsow': did you mean 'jigsaw'"):
        report(tmp_path)


def test_short_names_stay_different():
    names = ("MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToLocal-v0", "ALE/Pong-v5", "Door", "Ant-v4", "Ant-v5")
    assert list(short_names(names).values()) == ["DoorKey-5x5", "GoToLocal", "Pong", "Door", "Ant-v4", "Ant-v5"]


@pytest.mark.parametrize("name", ["answer", "baseline"])
def test_metric_names_its_arms(name):
    with pytest.raises(RlpreError, match="unknown arm 'bset': did you mean 'best'"):
        Metric(**{"arms": METRIC.arms, "answer": "best"} | {name: "bset"})


def test_what_saved_is_pretraining_or_else_the_arm(tmp_path):
    runs = {"scratch": [8000, 9000, 10_000], "random": [8000, 9000, 10_000], "best": [2000, 3000, 4000]}
    for baseline, cause in (("scratch", "pretraining"), ("random", "best")):
        metric = replace(METRIC, baseline=baseline)
        study = write_study(tmp_path / baseline, runs, metric)
        assert answer(results_of(study)["Door"], metric).claim == f"{cause} saved 6k environment steps"


def test_frames_that_the_baseline_had_too_are_no_cost(tmp_path):
    metric = Metric({"best": 60_000, "past": 60_000}, answer="past", baseline="best")
    study = write_study(tmp_path, {"best": [8000, 9000, 10_000], "past": [2000, 3000, 4000]}, metric)
    assert "offline frames" not in answer(results_of(study)["Door"], metric).facts
