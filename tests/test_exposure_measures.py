"""Exposure bias: recorded contexts, statistics and verdicts against numbers worked out by hand."""

from dataclasses import fields

import numpy as np
import pytest

from rlpre.errors import RlpreError
from rlpre.measure.crossed import estimate
from rlpre.measure.exposure import (
    CHANCE,
    CONTEXTS,
    EE,
    ERROR,
    NLL,
    OO,
    RECOVERED,
    REGRET,
    RUNNING,
    Context,
    Sample,
    Switches,
    accumulated,
    load_contexts,
    mean_nll,
    rates,
    recovery,
    save_contexts,
    slope,
    summary,
    tabulate,
)
from rlpre.measure.verdict import CURES, HARMS, NONE, NOTHING, REDUCES, change


def context(wrong, alive=None, regret=None, success=None) -> Context:
    wrong = np.array(wrong, bool)
    return Context(
        wrong=wrong,
        nll=np.where(wrong, 2.0, 0.5),
        regret=wrong.astype(float) if regret is None else regret,
        alive=np.ones_like(wrong) if alive is None else alive,
        success=np.ones(len(wrong), bool) if success is None else success,
    )


def test_contexts_survive_the_disk(tmp_path):
    rng = np.random.default_rng(0)
    contexts = {name: context(rng.random((4, 6)) < 0.3) for name in CONTEXTS}
    switches = Switches(np.array([0, 2]), rng.random((2, 4)) < 0.5, rng.random((2, 4)) < 0.5)
    save_contexts(tmp_path / "contexts.npz", contexts, switches)
    loaded, turns = load_contexts(tmp_path / "contexts.npz")
    for name in CONTEXTS:
        for field in fields(Context):
            np.testing.assert_array_equal(getattr(loaded[name], field.name), getattr(contexts[name], field.name))
    for field in fields(Switches):
        np.testing.assert_array_equal(getattr(turns, field.name), getattr(switches, field.name))
    save_contexts(tmp_path / "contexts.npz", contexts)
    assert load_contexts(tmp_path / "contexts.npz")[1] is None


def test_only_living_steps_count():
    alive = np.array([[True, True, False], [True, True, True], [False, False, False]])
    wrong = np.array([[True, True, True], [True, False, True], [True, True, True]])
    regret = np.array([[0.0, 2.0, np.nan], [0.0, np.nan, 1.0], [np.nan] * 3])
    found = context(wrong, alive, regret)
    assert found.kept.tolist() == [True, True, False]
    assert found.counts.shape == (6, 3, 3)
    assert found.counts[ERROR].tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    # Not every disagreement costs something; where the action is the expert's, no regret needs to be known.
    assert found.counts[REGRET].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert found.counts[NLL].tolist() == [[2, 2, 0], [2, 0.5, 2], [0, 0, 0]]
    assert found.counts[RUNNING].sum(axis=0).tolist() == [2, 2, 1]
    assert found.counts[CHANCE].tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found.counts[RECOVERED].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_regret_that_was_not_measured_stays_unknown():
    found = context(np.ones((2, 2)), regret=np.full((2, 2), np.nan))
    assert np.isnan(found.counts[REGRET]).all()
    sample = Sample.gather({seed: dict.fromkeys(CONTEXTS, found) for seed in range(3)}, 2)
    unknown = change(sample, sample, np.random.default_rng(0))
    assert unknown.verdict == NONE
    assert (unknown.free.low, unknown.success.value) == (None, 0)


def test_bad_contexts_are_refused(tmp_path):
    path = tmp_path / "contexts.npz"
    with pytest.raises(RlpreError, match="alive after its end"):
        context(np.ones((1, 3)), np.array([[True, False, True]]))
    with pytest.raises(RlpreError, match=r"a context is \(episodes, steps\).*'success': \(3,\)"):
        context(np.ones((2, 3)), success=np.ones(3))
    with pytest.raises(RlpreError, match="nll is not finite"):
        Context(*np.zeros((4, 1, 2))[:1], np.full((1, 2), np.inf), np.zeros((1, 2)), np.ones((1, 2)), np.ones(1))
    with pytest.raises(RlpreError, match="is missing: measure"):
        load_contexts(path)
    path.write_bytes(b"PK half a file")
    with pytest.raises(RlpreError, match="is damaged"):
        load_contexts(path)
    save_contexts(path, {name: context(np.ones((len(name) + (name == "OO"), 2))) for name in CONTEXTS})
    with pytest.raises(RlpreError, match=r"different numbers of episodes, {'EE': 2, 'EO': 2, 'OE': 2, 'OO': 3}"):
        load_contexts(path)


def test_accumulated_error_and_slope_by_hand():
    forced, free = np.array([0.1, 0.1, 0.1]), np.array([0.1, 0.2, 0.3])
    # 1 x .1/.1, 2 x .3/.2, 3 x .6/.3
    assert accumulated(free, forced) == pytest.approx([1, 3, 6])
    assert np.isnan(accumulated(free, np.array([0.0, 0.1, 0.1]))).tolist() == [True, False, False]
    steps = np.arange(1, 41)
    for growth in (1.0, 1.5, 2.0):
        total = 0.002 * steps**growth  # so that AccErr(l) = l^growth
        free = np.diff(total, prepend=0.0)
        beyond = np.where(total < 0.3, free, 10.0)  # says nothing any more
        assert slope(beyond, np.full(40, 0.002)) == pytest.approx(growth)
    assert np.isnan(slope(np.full(9, 0.12), np.full(9, 0.1)))  # above .3 after two points
    assert slope(np.stack([free, free]), np.full((2, 40), 0.002)).shape == (2,)


def test_summary_by_hand():
    """Two episodes of two and three steps; of the learner's, one goes on to the fourth."""
    short, long = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool), np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    contexts = {
        "EE": context([[1, 0, 0, 0], [0, 0, 0, 0]], short),
        "EO": context([[1, 0, 0, 0], [0, 0, 1, 0]], short),
        "OE": context([[1, 0, 0, 0], [0, 1, 0, 0]], long),
        "OO": context([[1, 0, 0, 0], [1, 1, 0, 1]], long),
    }
    means = tabulate(contexts, 5).mean(axis=0)
    found = summary(means, ERROR)
    expected = {"EE": 0.5, "EO": 1, "OE": 1, "OO": 2, "excess": 1.5, "excess percent": 300, "history": 0.5}
    expected |= {"state": 0.5, "interaction": 0.5}
    # Alive only, up to step 3, the last of the expert's: OO 2/2 + 1/2 + 0/1, EE 1/2.
    expected |= {"excess alive": 1, "excess percent alive": 200}
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)
    assert summary(means, REGRET)["OO"] == found["OO"]  # here every error costs a step
    # OO was wrong at 1, 1, 2 with a step after: right after the first and the third.
    assert recovery(means)[OO] == pytest.approx(2 / 3)
    assert mean_nll(means)[EE] == pytest.approx((2 + 4 * 0.5) / 5)
    np.testing.assert_allclose(rates(means[OO, ERROR], means[OO, RUNNING]), [1, 0.5, 0, 1, np.nan])
    assert found["OO"] == summary(tabulate(contexts, 5)[[1, 0]].mean(axis=0), ERROR)["OO"]
    assert summary(tabulate(contexts, 2).mean(axis=0), ERROR)["OO"] == 1.5  # the horizon cuts


def chain(error: float, recover: float, steps: int) -> np.ndarray:
    """P(wrong at t): ``error`` after a right step, 1 - ``recover`` after a wrong one."""
    limit, factor = error / (error + recover), 1 - recover - error
    return limit + (error - limit) * factor ** np.arange(steps)


def simulate(first, after_right, after_wrong, rng, shape) -> np.ndarray:
    """(E, T) errors of a chain that begins with ``first``."""
    dice = rng.random(shape)
    wrong = [dice[:, 0] < first]
    for t in range(1, shape[1]):
        wrong.append(dice[:, t] < np.where(wrong[-1], after_wrong, after_right))
    return np.stack(wrong, axis=1)


@pytest.mark.parametrize("recover", [0.0, 0.3, 0.98])
def test_an_mdp_whose_excess_is_known(recover):
    """On the expert's states it errs with .02; an error leads off, where it errs until it recovers."""
    error, steps, rng, runs = 0.02, 30, np.random.default_rng(1), {}
    for seed in range(3):
        forced = context(rng.random((400, steps)) < error)
        free = context(simulate(error, error, 1 - recover, rng, (400, steps)))
        runs[seed] = dict(zip(CONTEXTS, (forced, forced, free, free), strict=True))
    sample = Sample.gather(runs, steps)

    def figures(means):
        found = summary(means, ERROR)
        return np.stack([found["excess"], found["history"], found["interaction"], recovery(means)[..., OO]], axis=-1)

    excess, history, interaction, recovered = estimate(sample.steps, sample.kept, figures, rng)
    expected = chain(error, recover, steps)
    assert excess.low < expected.sum() - steps * error < excess.high
    assert excess.high - excess.low < 2
    assert (excess.low > 0) == (recover < 0.9)  # it cannot be told from none where every error is made good at once
    assert recovered.low <= recover <= recovered.high
    assert (history.value, interaction.value) == pytest.approx((0, 0))  # all of it comes through the states
    np.testing.assert_allclose(sample.steps[..., OO, ERROR, :].mean(axis=(0, 1)), expected, atol=0.05)


def test_slope_tells_growth_from_recovery():
    forced = np.full(200, 0.001)
    never, slow, at_once = (float(slope(chain(0.001, recover, 200), forced)) for recover in (0.0, 0.3, 0.999))
    # Without recovery AccErr(l) = l (l + 1) / 2: the slope is 2 l / (l + 1) and more.
    assert 1.75 < never < 2
    assert 1.1 < slow < 1.3
    assert at_once == pytest.approx(1)


def test_a_sticky_target_gives_excess_that_does_not_grow():
    """The target changes with .02; half of the time the policy repeats the action that stands in its history."""
    change_of_target, repeat, misread, steps, rng, runs = 0.02, 0.5, 0.01, 40, np.random.default_rng(2), {}
    expected = [misread]
    for _ in range(steps - 1):
        copied = expected[-1] * (1 - change_of_target) + (1 - expected[-1]) * change_of_target
        expected.append(repeat * copied + (1 - repeat) * misread)
    for seed in range(3):
        changed, copies, misreads = (rng.random((600, steps)) < p for p in (change_of_target, repeat, misread))
        copies[:, 0] = False
        forced, free = np.where(copies, changed, misreads), misreads.copy()
        for t in range(1, steps):
            free[:, t] = np.where(copies[:, t], free[:, t - 1] ^ changed[:, t], misreads[:, t])
        own, expert = context(free), context(forced)
        runs[seed] = {"EE": expert, "EO": own, "OE": expert, "OO": own}
    sample = Sample.gather(runs, steps)

    def figures(means):
        found, late = summary(means, ERROR), summary(means[..., 20:], ERROR)
        early = summary(means[..., :20], ERROR)["excess"]
        return np.stack([found["excess"], late["excess"] - early, found["slope"], found["state"]], axis=-1)

    excess, growth, steepness, state = estimate(sample.steps, sample.kept, figures, rng)
    assert excess.low < sum(expected) - misread - (steps - 1) * (0.5 * 0.02 + 0.5 * 0.01) < excess.high
    assert excess.low > 0
    assert growth.high < excess.value / 3  # if it grew with every step, half of it would be the growth
    assert 1 < steepness.value < 1.3
    assert state.value == 0


def policy(forced: float, free: float, solved: float, seed: int = 0, seeds: int = 3) -> Sample:
    """A policy that makes so many regret errors in a step of EE and of OO; the episodes differ in how hard they are."""
    rng, hard = np.random.default_rng(seed), np.random.default_rng(99).uniform(0.5, 1.5, (300, 1))
    runs = {}
    for number in range(seeds):
        ee, oo = (context(rng.random((300, 10)) < np.clip(rate * hard, 0, 1)) for rate in (forced, free))
        oo = Context(oo.wrong, oo.nll, oo.regret, oo.alive, rng.random(300) < solved)
        runs[number] = {"EE": ee, "EO": ee, "OE": oo, "OO": oo}
    return Sample.gather(runs, 10)


@pytest.mark.parametrize(
    ("forced", "free", "solved", "verdict"),
    [
        (0.10, 0.30, 0.60, NOTHING),  # the same policy
        (0.10, 0.14, 0.90, CURES),
        (0.10, 0.24, 0.70, REDUCES),
        (0.10, 0.36, 0.60, HARMS),  # more errors on its own
        (0.10, 0.36, 0.90, NOTHING),  # more errors on its own, and more successes
        (0.10, 0.14, 0.30, HARMS),  # fewer errors, fewer successes
        (0.05, 0.25, 0.60, NOTHING),  # better everywhere: the excess is what it was
        (0.30, 0.30, 0.60, NOTHING),  # worse with the expert's contexts, not better on its own: no excess, and no cure
        (0.28, 0.27, 0.70, REDUCES),  # hardly better on its own: most of the excess went because EE is worse
    ],
)
def test_verdicts(forced, free, solved, verdict):
    found = change(policy(forced, free, solved, seed=1), policy(0.10, 0.30, 0.60), np.random.default_rng(0))
    assert found.verdict == verdict
    assert found.before.low > 0
    assert found.forced.value == pytest.approx(10 * (forced - 0.10), abs=0.15)
    assert found.free.value == pytest.approx(10 * (free - 0.30), abs=0.15)
    assert found.excess.value == pytest.approx(found.free.value - found.forced.value)
    # Two thirds and more of the excess are gone in the last case, of which its own errors fell by less than a quarter.
    assert found.removed == pytest.approx(max(0, min(0.30 - free, 0.20 - free + forced)) / 0.2, abs=0.1)


def test_nothing_is_cured_where_the_clone_shows_no_excess():
    found = change(policy(0.2, 0.1, 0.9, seed=1), policy(0.2, 0.2, 0.9), np.random.default_rng(0))
    assert found.excess.high < 0
    assert found.free.high < 0
    assert (found.removed, found.verdict) == (None, NOTHING)


def test_pairs_are_seeds_and_episodes_that_both_have():
    clone, rng = policy(0.10, 0.30, 0.60), np.random.default_rng(0)
    assert change(clone.of([2, 0]), clone, rng).verdict == NONE  # two seeds
    assert change(clone, clone, rng).excess.high == 0  # every pair is a tie
    with pytest.raises(RlpreError, match=r"seeds \[0\] and \[1\] have none in common"):
        change(clone.of([0]), clone.of([1]), rng)
    fewer = Sample(clone.seeds, clone.steps[:, :9], clone.success[:, :9], clone.kept[:, :9])
    with pytest.raises(RlpreError, match="9 and 300 test episodes cannot be paired"):
        change(fewer, clone, rng)
