"""A comparison over several tasks."""

import numpy as np
import pytest
from studies import METRIC, NEVER, overall_of, results_of, write_run, write_study

from rlpre.report.comparison import table
from rlpre.report.comparison.answers import answers
from rlpre.report.words import Answer
from rlpre.study import Cell

FAST, SLOW = [2000, 3000, 4000], [8000, 9000, 10_000]


def overall_answer(study) -> Answer:
    return next(iter(answers(results_of(study), overall_of(study), METRIC).values()))


def test_figures_over_tasks_by_hand(tmp_path):
    write_study(tmp_path, {"scratch": [6000, 6000, 6000], "best": [2000, 2000, 2000]}, env="A")
    write_study(tmp_path, {"scratch": [4000, 4000, 4000], "jigsaw": [4000], "best": [3000, 3000, NEVER]}, env="B")
    write_run(tmp_path, Cell("B", "best", 7), 3000)  # in B alone: its steps count, its scores have no partner in A
    found = overall_of(tmp_path)
    assert list(found) == ["scratch", "best"]  # jigsaw has not run in A
    best = found["best"]
    assert best.seeds == (0, 1, 2)
    assert best.finals.tolist() == [[0.95, 0.95], [0.95, 0.95], [0.95, pytest.approx(0.2)]]
    assert best.final.value == pytest.approx(0.95)  # of six scores the lowest and the highest are cut
    assert best.ratio.ratio.value == pytest.approx(np.sqrt(3 * 4000 / ((3 * 3000 + 10_000) / 4)))
    assert (best.ratio.bound, best.ratio.baseline_reached, best.ratio.treated_reached) == ("<=", 6, 6)
    assert best.improvement.value == pytest.approx((1 + 6 / 9) / 2)
    assert (found["scratch"].ratio, found["scratch"].improvement) == (None, None)


@pytest.mark.parametrize(
    ("tasks", "verdict", "claim", "facts"),
    [
        ([(SLOW, FAST), (SLOW, FAST)], "saved", "pretraining saved environment steps on 2 of 2 tasks", "saved on A, B"),
        (
            [(SLOW, FAST), (FAST, SLOW)],
            "not known",
            "pretraining saved environment steps on 1 of 2 tasks and cost steps on 1",
            "saved on A; cost on B; to reach 0.8 on all tasks, scratch needs 1.00 [",
        ),
        (
            [(FAST, SLOW), (FAST, [7000, NEVER, NEVER])],
            "cost",
            "pretraining saved environment steps on none of 2 tasks and cost steps on 2",
            "cost on A, B; to reach 0.8 on all tasks, scratch needs <=0.33 [0, ",
        ),
        (
            [(SLOW, FAST), ([NEVER] * 3, [NEVER] * 3)],
            "saved",
            "pretraining saved environment steps on 1 of 2 tasks",
            "saved on A; no answer on B; to reach 0.8 on all tasks, scratch needs 1.73 [",
        ),
        ([(SLOW, []), ([], FAST)], "no answer", "no answer on any of 2 tasks", "no answer on A, B"),
        ([(SLOW[:2], FAST[:2]), (SLOW, FAST[:1])], "no answer", "no answer on any of 2 tasks", "no answer on A, B; to"),
    ],
)
def test_overall_answers(tmp_path, tasks, verdict, claim, facts):
    for env, (scratch, best) in zip("AB", tasks, strict=True):
        write_study(tmp_path, {"scratch": scratch, "best": best}, env=env)
    answer = overall_answer(tmp_path)
    assert (answer.verdict, answer.claim) == (verdict, claim)
    assert answer.facts.startswith(facts)
    assert ("within the budgets" in answer.facts) == (NEVER in tasks[1][0])


def test_table_over_tasks_comes_first(tmp_path):
    for env in "AB":
        write_study(tmp_path, {"scratch": SLOW, "best": FAST}, env=env)
    title, _, header, _, scratch, best = table.text(results_of(tmp_path), overall_of(tmp_path), METRIC).splitlines()[:6]
    assert title == "All 2 tasks"
    assert header.split() == ["arm", "n", "final", "return", "area", "ratio", "P(better)"]
    assert scratch.split()[-2:] == ["-", "-"]
    assert best.split()[:3] == ["best", "3", "0.95"]
    assert " 3.00 [" in best
