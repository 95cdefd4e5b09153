"""Reports on studies whose curves are made by hand."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from studies import METRIC, NEVER, STEPS, record, write_run, write_study
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from rlpre.compare.report import answers, report, style
from rlpre.compare.runner import Run
from rlpre.compare.summary import ALL, Metric, load_rows, read_results
from rlpre.errors import RlpreError
from rlpre.evaluation.page import Section
from rlpre.utils import write_json

FAST, SLOW = [2000, 3000, 4000], [8000, 9000, 10_000]


def test_figures_by_hand(tmp_path):
    # Seed 10 sorts after seed 2, not before it.
    write_study(tmp_path, {"scratch": [6000, 8000, NEVER], "best": [2000, 2000]})
    write_run(tmp_path, Run("Door", "best", 10), 8000)
    results = read_results(tmp_path)
    assert list(results.tasks["Door"]) == ["scratch", "best"]
    curves, best, scratch = results.tasks["Door"]["best"], record(tmp_path, "best"), record(tmp_path, "scratch", None)
    assert curves.seeds == (0, 1, 10)
    assert curves.times(0.8)[0].tolist() == [2000, 2000, 8000]
    assert [point.value for point in curves.points] == pytest.approx([0.2] + [0.7] * 6 + [0.95] * 3)
    assert (best.steps.value, best.final.value, scratch.final.value) == pytest.approx((4000, 0.95, 0.7))
    # Seeds 0 and 1: half a trapezoid of 0.2 and 0.95, then 8 of 0.95; seed 10: 6 of 0.2, the half, 2 of 0.95; of 9.
    areas = [(0.575 + 8 * 0.95) / 9, (0.575 + 8 * 0.95) / 9, (6 * 0.2 + 0.575 + 2 * 0.95) / 9]
    assert best.area.value == pytest.approx(np.mean(areas))
    assert best.ratio.ratio.value == pytest.approx((6000 + 8000 + 10_000) / 12_000)
    assert (best.ratio.bound, scratch.reached, best.reached, best.n) == (">=", 2, 3, 3)
    # Of nine pairs, best wins all but 8000 against 6000, and ties 8000 against 8000.
    assert best.better.value == pytest.approx(7.5 / 9)
    assert (scratch.over, scratch.ratio, scratch.better) == (None, None, None)
    assert results.minutes("Door", "best") == "1.5"


def test_figures_over_tasks_by_hand(tmp_path):
    write_study(tmp_path, {"scratch": [6000, 6000, 6000], "best": [2000, 2000, 2000]}, task="A")
    write_study(tmp_path, {"scratch": [4000, 4000, 4000], "jigsaw": [4000], "best": [3000, 3000, NEVER]}, task="B")
    write_run(tmp_path, Run("B", "best", 7), 3000)  # in B alone: its steps count, its scores have no partner in A
    assert [each.arm for each in read_results(tmp_path).arms(ALL)] == ["scratch", "best"]  # jigsaw has not run in A
    best = record(tmp_path, "best", task=ALL)
    assert (best.n, best.steps) == (3, None)
    assert best.final.value == pytest.approx(0.95)  # of six scores the lowest and the highest are cut
    assert best.ratio.ratio.value == pytest.approx(np.sqrt(3 * 4000 / ((3 * 3000 + 10_000) / 4)))
    assert (best.ratio.bound, best.ratio.baseline_reached, best.ratio.treated_reached) == ("<=", 6, 6)
    assert best.better.value == pytest.approx((1 + 6 / 9) / 2)


@pytest.mark.parametrize(
    ("arms", "sentence"),
    [
        ({"scratch": SLOW, "best": FAST}, "pretraining saved 6k environment steps: to reach 0.8, scratch needs 3.00 ["),
        ({"scratch": [9000, NEVER, NEVER], "best": [2000, 2000, 3000]}, "pretraining saved at least 7.33k"),
        ({"scratch": FAST, "best": SLOW}, "pretraining cost 6k environment steps"),
        ({"scratch": [2000, 2000, 3000], "best": [9000, NEVER, NEVER]}, "pretraining cost at least 7.33k"),
        ({"scratch": [2000, 3000, 9000], "best": [1000, 4000, 8000]}, "it is not known whether pretraining saves"),
        # 10 / 4 is above 1 only because the run that never reaches counts as the budget.
        ({"scratch": [10_000] * 5, "best": [3000, 3000, 2000, 2000, NEVER]}, "it is not known"),
        ({"scratch": [NEVER] * 3, "best": [NEVER] * 3}, "no answer, no run of scratch or best reached 0.8 in 10k"),
        ({"scratch": SLOW[:2], "best": FAST[:2]}, "no answer, fewer than 3 runs"),
        (
            {"scratch": [5000] * 3, "best": [4000] * 3},
            "every run of scratch needs 1.25 times the steps of every run of",
        ),
        (
            {"scratch": [NEVER] * 3, "best": [1000] * 3},
            "every run of scratch needs at least 10 times the steps of every",
        ),
        ({"scratch": SLOW}, "no answer, there is no finished run of best"),
        ({"best": SLOW, "random": [1000]}, "no answer, there is no finished run of scratch"),
    ],
)
def test_answers(tmp_path, arms, sentence):
    (answer,) = map(str, answers(read_results(write_study(tmp_path, arms))).values())
    assert answer.startswith(sentence)
    assert ("after 60k offline frames" in answer) == ("to reach" in answer)
    undecided = "it is not known" in answer or "reached 0.8 in 10k" in answer
    assert ("best against scratch has an area of" in answer) == undecided


def test_an_undecided_answer_says_how_many_seeds_would_decide(tmp_path):
    arms = {"scratch": [2000, 3000, 9000], "best": [3000, 2000, 9000]}
    (undecided,) = map(str, answers(read_results(write_study(tmp_path / "a", arms))).values())
    assert "no number of seeds up to 1,000 would decide" in undecided
    arms = {"scratch": [4000, 5000, 9000], "best": [2000, 3000, 4000]}
    (undecided,) = map(str, answers(read_results(write_study(tmp_path / "b", arms))).values())
    assert re.search(
        r"about \d+ seeds would decide if the ratio stays so: run the same again with seeds=\d+", undecided
    )
    arms = {"scratch": [2000, 3000, None], "best": [5000, 5000, 6000]}
    (undecided,) = map(str, answers(read_results(write_study(tmp_path / "c", arms))).values())
    assert "more steps would decide, more seeds would not" in undecided


@pytest.mark.parametrize(
    ("tasks", "verdict", "claim", "facts"),
    [
        (
            [(SLOW, FAST), (FAST, SLOW)],
            *("not known", "pretraining saved environment steps on 1 of 2 tasks and cost steps on 1"),
            "saved on A; cost on B; to reach 0.8 on all tasks, scratch needs 1.00 [",
        ),
        (
            [(FAST, SLOW), (FAST, [7000, NEVER, NEVER])],
            *("cost", "pretraining saved environment steps on none of 2 tasks and cost steps on 2"),
            "cost on A, B; to reach 0.8 on all tasks, scratch needs <=0.33 [0, ",
        ),
        (
            [(SLOW, FAST), ([NEVER] * 3, [NEVER] * 3)],
            *("saved", "pretraining saved environment steps on 1 of 2 tasks"),
            "saved on A; no answer on B; to reach 0.8 on all tasks, scratch needs 1.73 [",
        ),
        ([(SLOW, []), ([], FAST)], "no answer", "no answer on any of 2 tasks", "no answer on A, B"),
        ([(SLOW[:2], FAST[:2]), (SLOW, FAST[:1])], "no answer", "no answer on any of 2 tasks", "no answer on A, B; to"),
    ],
)
def test_overall_answers(tmp_path, tasks, verdict, claim, facts):
    for task, (scratch, best) in zip("AB", tasks, strict=True):
        write_study(tmp_path, {"scratch": scratch, "best": best}, task=task)
    answer = answers(read_results(tmp_path))[ALL]
    assert (answer.verdict, answer.claim) == (verdict, claim)
    assert answer.facts.startswith(facts)
    assert ("within the budgets" in answer.facts) == (NEVER in tasks[1][0])


def test_report_for_a_terminal(tmp_path):
    arms = {"scratch": [8000, 9000, NEVER], "random": [NEVER] * 3, "jigsaw": [5000], "best": FAST}
    lines = report(write_study(tmp_path, arms), [Section("More", ["Of this study."])]).splitlines()
    assert lines[0] == "Pretraining saved at least 6k environment steps."
    assert {"MORE", "Of this study."} <= set(lines)
    header, _, *rows = lines[lines.index("Arms") + 1 :][:6]
    starts = [header.index(name) for name in ("scratch", "random", "steps", "reached", "P(", "area", "final", "frames")]
    assert all(row[start - 1] == " " != row[start] for row in rows for start in starts)
    for row, words in zip(rows, (["2/3", ">=9k ["], ["0/3"], ["5k (n<3)"], [", inf]", "3/3"]), strict=True):
        assert all(word in row for word in words)
    assert "? (none reach)" not in rows[1]  # scratch reaches it, so that the ratio says something
    assert rows[2].endswith("0.5k    1.5")
    assert rows[3].count(">=3.") == 2  # over scratch and over the control


def test_report_writes_everything(tmp_path):
    arms = {"scratch": [8000, 9000, NEVER], "jigsaw": [5000], "best": FAST, "random": [NEVER] * 3}
    write_study(tmp_path, arms)
    shown = report(write_study(tmp_path, arms, task="Bench/Key"))
    page = (tmp_path / "report.html").read_bytes()
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["answer"] == "Pretraining saved environment steps on 2 of 2 tasks."
    records = {(each["task"], each["arm"], each["over"]): each for each in summary["records"]}
    assert {key[2] for key in records if key[:2] == ("Door", "best")} == {"scratch", "random"}
    best = records["Door", "best", "scratch"]
    assert (best["ratio"], best["steps_to_threshold"]) == pytest.approx((3, 3000))
    assert (best["bound"], best["high"], best["reached"], best["n"]) == (">=", None, 3, 3)
    assert best["low"] == pytest.approx(record(tmp_path, "best").ratio.ratio.low, rel=1e-5)
    assert records["Door", "scratch", None]["ratio"] is None
    assert records["Door", "jigsaw", "scratch"]["final_low"] is None
    assert records[ALL, "best", "scratch"]["steps_to_threshold"] is None
    pixels = np.asarray(Image.open(tmp_path / "report.png").convert("RGB")).reshape(-1, 3)
    for arm in arms:
        colour = [int(style(arm, METRIC)[0][i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == colour).all(axis=1).sum() > 500
    assert len({style(arm, METRIC) for arm in METRIC.arms}) == len(METRIC.arms)
    many = replace(METRIC, arms=METRIC.arms | {f"control {number}": 0 for number in range(5)})
    assert len({style(arm, many) for arm in many.arms}) == len(many.arms)
    # The published files alone give the same report, without any chance in it.
    published = tmp_path / "published"
    published.mkdir()
    for name in ("study.json", "rows.json"):
        shutil.copy(tmp_path / name, published)
    assert set(load_rows(published / "rows.json")) == set(read_results(tmp_path).rows)
    assert report(published) == report(tmp_path) == shown
    assert (tmp_path / "report.html").read_bytes() == page
    (published / "rows.json").write_text('{"runs": [{}]}')
    with pytest.raises(RlpreError, match=r"rows\.json is damaged"):
        report(published)


def test_tensorboard_shows_curves_with_bands(tmp_path):
    for task in ("MiniGrid-Door-v0", "Bench/Key"):
        write_study(tmp_path, {"scratch": [8000, 9000, NEVER], "jigsaw": [5000], "best": FAST}, task=task)
    for _ in range(2):  # a second report replaces the first
        report(tmp_path)
    boards = {
        arm: EventAccumulator(str(tmp_path / "tensorboard" / arm)).Reload() for arm in ("scratch", "jigsaw", "best")
    }
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == set(boards)
    (board,) = (board for board in boards.values() if CONFIG_SUMMARY_TAG in board.Tags()["tensors"])
    (event,) = board.Tensors(CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    assert category.title.startswith("return: IQM and 95 % interval")
    assert {chart.title for chart in category.chart} == {"Door", "Key"}
    for chart in category.chart:
        (series,) = chart.margin.series
        assert {series.value, series.lower, series.upper} <= set(boards["best"].Tags()["scalars"])
        interval = series.value.replace("compare/", "interval/")
        assert (series.lower, series.upper) == (f"{interval}_low", f"{interval}_high")
    points = read_results(tmp_path).tasks["Bench/Key"]["best"].points
    tags = {"value": "compare/{}", "low": "interval/{}_low", "high": "interval/{}_high"}
    for field, tag in tags.items():
        scalars = boards["best"].Scalars(tag.format("Bench/Key/return"))
        assert [event.step for event in scalars] == STEPS.tolist()
        assert [event.value for event in scalars] == pytest.approx([getattr(point, field) for point in points])
    assert boards["jigsaw"].Tags()["scalars"] == ["compare/Bench/Key/return", "compare/MiniGrid-Door-v0/return"]


def test_bad_studies_are_refused(tmp_path):
    def refused(message):
        return pytest.raises(RlpreError, match=message)

    with refused(r"study\.json is missing"):
        report(tmp_path)
    write_json(tmp_path / "study.json", {"format": 2})
    with refused("has no metric"):
        report(tmp_path)
    write_study(tmp_path, {})
    with refused("holds no finished run"):
        report(tmp_path)
    path = write_run(tmp_path, Run("Door", "jigsow", 0), 5000)
    with refused("unknown arm 'jigsow': did you mean 'jigsaw'"):
        report(tmp_path)
    write_json(path / "rows.json", [["score", 1.0, None]])
    with refused(r"no run of .* measured 'return' by steps"):
        report(tmp_path)
    shutil.rmtree(path)
    write_study(tmp_path, {"scratch": [5000]})
    write_run(tmp_path, Run("Other", "scratch", 0), 300, STEPS // 10)  # another task may have other steps
    assert len(read_results(tmp_path).tasks) == 2
    path = write_run(tmp_path, Run("Door", "scratch", 1), 5000, STEPS[:-1])
    with refused(r"scratch/seed-1 was measured at 9 points up to step 9000, .*seed-0 at 10"):
        report(tmp_path)
    write_json(path / "rows.json", [["return", float("nan"), 1000]])
    with refused("scratch/seed-1: return is not finite at step 1000"):
        report(tmp_path)


@pytest.mark.parametrize("names", [{"answer": "bset"}, {"baseline": "bset"}, {"controls": ["bset"]}])
def test_metric_names_its_arms(names):
    with pytest.raises(RlpreError, match="unknown arm 'bset': did you mean 'best'"):
        Metric(**{"arms": METRIC.arms, "answer": "best"} | names)


def test_what_saved_is_pretraining_or_else_the_arm_which_pays_for_its_own_frames(tmp_path):
    runs = {"scratch": SLOW, "random": SLOW, "best": FAST}
    for names, cause in (({}, "pretraining"), ({"baseline": "random"}, "the arm 'best'")):
        study = write_study(tmp_path / cause, runs, replace(METRIC, **names))
        assert answers(read_results(study))["Door"].claim == f"{cause} saved 6k environment steps"
    study = write_study(tmp_path / "control", runs, replace(METRIC, answer="random"))
    assert answers(read_results(study))["Door"].claim.startswith("it is not known whether the arm 'random' saves")
    metric = Metric({"best": 60_000, "past": 60_000}, answer="past", baseline="best")
    study = write_study(tmp_path / "both", {"best": SLOW, "past": FAST}, metric)
    assert "offline frames" not in answers(read_results(study))["Door"].facts
