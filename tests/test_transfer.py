"""Transfer: hand-computed tests and verdicts, choice that is not flattered, and bad input."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rlpre import RlpreError
from rlpre.measure.transfer import LEVEL, Ladder, Transfer, against, contrasts, holm, one_sided, transfer


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ladder(scratch: list[float], **rungs: list[float]) -> Ladder:
    """A ladder with rungs given as step_50=[...]."""
    return Ladder(np.array(scratch), {int(name[5:]): np.array(scores) for name, scores in rungs.items()})


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1.0, 1.0])


def test_one_sided_is_the_paired_t_test() -> None:
    differences = rng().normal(0.3, 1.0, size=(8, 3))
    expected = scipy_stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue
    np.testing.assert_allclose(one_sided(differences, rng()), expected, rtol=0.15)
    assert one_sided(np.array([[0.0, 1.0, -1.0]] * 4), rng()).tolist() == [1.0, 0.0, 1.0]


def test_false_calls_are_as_rare_as_promised() -> None:
    p = one_sided(rng(3).normal(size=(5, 4 * 250)), rng(4)).reshape(250, 4)
    assert np.mean([holm(family).min() <= LEVEL for family in p]) == pytest.approx(LEVEL, abs=0.035)


def test_verdicts_in_both_directions() -> None:
    noise = np.array([-0.02, 0.0, 0.01, -0.01, 0.02])[:, None]
    found = contrasts(noise + np.array([0.2, -0.2, 0.0]), rng())
    assert [contrast.verdict for contrast in found] == ["positive", "negative", "undecided"]
    assert found[1].gain.value == pytest.approx(-0.2)
    assert found[1].gain.high is not None
    assert found[1].gain.high < 0
    equal = contrasts(np.zeros((5, 1)), rng())[0]
    assert (equal.verdict, equal.gain.low, equal.gain.high) == ("undecided", 0.0, 0.0)


def test_holm_takes_verdicts_back_that_many_tasks_give_by_luck() -> None:
    column = np.array([0.1, -0.02, 0.12, 0.05, 0.02])
    assert contrasts(column[:, None], rng())[0].verdict == "positive"
    tasks = np.stack([column, *(np.array([1.0, -1.0, 0.5, -0.6, 0.1]) for _ in range(9))], axis=1)
    assert contrasts(tasks, rng())[0].verdict == "undecided"


def test_fewer_than_three_seeds_give_no_verdict() -> None:
    (found,) = contrasts(np.array([[0.5], [0.6]]), rng())
    assert (found.verdict, found.gain.low, found.above) == ("no verdict", None, None)


def test_choice_by_hand() -> None:
    choosing = ladder([0.5, 0.6], step_0=[0.9, 0.9], step_50=[0.7, 0.6], step_200=[0.6, 0.7], step_800=[0.1, 0.2])
    assert (choosing.best, choosing.last, choosing.advised) == (50, 800, 50), "the earliest of equals, never step 0"
    assert ladder([0.65, 0.65], step_50=[0.7, 0.6]).advised is None, "scratch is as good"


def test_transfer_by_hand() -> None:
    seeds = np.array([0.01, -0.01, 0.02, -0.02])
    choosing = {"a": ladder([0.5], step_0=[0.5], step_50=[0.8], step_200=[0.4]), "b": ladder([0.5], step_9=[0.2])}
    testing = {
        "a": Ladder(0.5 + seeds, {50: 0.75 + 2 * seeds, 200: 0.3 - seeds}),
        "b": Ladder(0.5 - seeds, {9: 0.1 + seeds}),
    }
    found = transfer(choosing, testing, rng())
    a, b = found.tasks["a"], found.tasks["b"]
    assert (a.chosen, a.advised, a.last, b.chosen, b.advised, b.last) == (50, 50, 200, 9, None, 9)
    for contrasts_, gains in ((a.contrasts, (0.25, -0.2, 0.45)), (b.contrasts, (-0.4, -0.4, 0.0))):
        each = (contrasts_.best, contrasts_.last, contrasts_.early)
        assert [one.gain.value for one in each] == pytest.approx(list(gains))
    assert [of.contrasts.last.verdict for of in (a, b)] == ["negative", "negative"]
    assert (a.contrasts.best.verdict, a.contrasts.early.verdict) == ("positive", "positive")
    assert b.contrasts.early.verdict == "undecided", "there was nothing to choose"
    assert found.overall.last.gain.value == pytest.approx(-0.3)
    assert found.overall.early.gain.value == pytest.approx(0.225)


def test_a_source_against_another_by_hand() -> None:
    right = {"a": ladder([9.0] * 3, step_9=[0.5, 0.6, 0.7]), "b": ladder([9.0] * 3, step_9=[0.5, 0.5, 0.5])}
    wrong = {"a": ladder([9.0] * 3, step_9=[0.3, 0.39, 0.51]), "b": ladder([9.0] * 3, step_5=[0.6, 0.5, 0.4])}
    tasks, overall = against(right, wrong, rng())
    assert [of.gain.value for of in (*tasks.values(), overall)] == pytest.approx([-0.2, 0.0, -0.1])
    assert [of.verdict for of in tasks.values()] == ["negative", "undecided"]
    for other in ({"a": wrong["a"]}, {**wrong, "b": ladder([9.0], step_9=[0.5])}):
        with pytest.raises(RlpreError, match="were not tested on the same tasks with the same seeds"):
            against(right, other, rng())


def simulated(gains: dict[int, float], seed: int, seeds: int = 5) -> Transfer:
    """One task whose agents have true gains over scratch, and as much luck as 0.1."""
    draws = rng(seed)

    def draw() -> dict[str, Ladder]:
        scratch = draws.normal(0.5, 0.1, seeds)
        return {"a": Ladder(scratch, {step: draws.normal(0.5 + gain, 0.1, seeds) for step, gain in gains.items()})}

    return transfer(draw(), draw(), draws)


def test_second_look_is_not_flattered() -> None:
    """Eight rungs that are as good as scratch: the best of them looks better where it was chosen, and not again."""
    found = [simulated(dict.fromkeys(range(1, 9), 0.0), seed).tasks["a"] for seed in range(60)]
    gains = [of.contrasts.best.gain.value for of in found]
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean([of.advised is not None for of in found]) > 0.7, "the first look is flattered"
    assert np.mean([of.contrasts.best.verdict == "positive" for of in found]) < 0.1


def test_harm_and_early_stopping_are_found() -> None:
    found = [simulated({50: 0.3, 800: -0.3}, seed).tasks["a"] for seed in range(20)]
    for name, verdict in (("best", "positive"), ("last", "negative"), ("early", "positive")):
        assert np.mean([getattr(of.contrasts, name).verdict == verdict for of in found]) > 0.8


GOOD = ladder([0.5, 0.5, 0.5], step_50=[0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("choosing", "testing", "sentence"),
    [
        ({}, {}, "validation has .*, test .*: score the same tasks in both"),
        ({"a": GOOD}, {"b": GOOD}, r"validation has \['a'\], test \['b'\]: score the same tasks"),
        ({"a": ladder([0.5])}, {"a": GOOD}, "the validation of a has no rung above step 0"),
        ({"a": ladder([0.5], step_0=[0.5])}, {"a": GOOD}, "the validation of a has no rung above step 0"),
        ({"a": ladder([0.5], step_9=[0.5])}, {"a": GOOD}, "the test of a lacks step 9: score the chosen rung and the"),
        ({"a": GOOD}, {"a": ladder([0.5, 0.5], step_50=[0.5])}, "has 1 scores of step 50, expected 2: pairs need all"),
        ({"a": GOOD}, {"a": GOOD, "b": ladder([0.5], step_50=[0.5])}, "validation has"),
        ({"a": GOOD}, {"a": ladder([], step_50=[])}, "has 0 scores of scratch, expected 0: pairs need all seeds"),
        ({"a": GOOD}, {"a": ladder([0.5, np.nan], step_50=[0.5, 0.5])}, "scratch that are not finite: look at those"),
    ],
)
def test_bad_input(choosing: dict[str, Ladder], testing: dict[str, Ladder], sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        transfer(choosing, testing, rng())
