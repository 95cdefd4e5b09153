"""Exposure bias: the four contexts are what their names say; statistics and verdicts against hand-computed numbers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from clones import LEVEL, perfect, small

from agents import exposure_metrics as metrics
from agents.cloning import SequencePolicy, episode_rng, sample
from agents.exposure_metrics import (
    CURES,
    EE,
    HARMS,
    NO_VERDICT,
    NOTHING,
    OO,
    REDUCES,
    Record,
    change,
    numbers,
    record,
)
from envs.minigrid.render import atlas
from envs.minigrid.trials import ExpertActor, Trial, choice_regrets, layout_seeds, play
from rlpre import RlpreError


@cache
def clumsy(previous_action: bool = True) -> SequencePolicy:
    """A policy with strong opinions."""
    policy = SequencePolicy(small(previous_action=previous_action))
    torch.manual_seed(3)
    torch.nn.init.normal_(policy.head.weight)
    return policy.eval()


@cache
def measured(previous_action: bool = True) -> tuple[list[Trial], Record]:
    """The expert's test trials, and what a clumsy policy did."""
    demonstrated = play(LEVEL, layout_seeds(LEVEL, "test", 6), ExpertActor())
    return demonstrated, record(clumsy(previous_action), LEVEL, demonstrated, [0, 2, 1000])


def test_a_perfect_policy_is_perfect_in_all_contexts() -> None:
    policy, seeds = perfect()
    found = record(policy, LEVEL, play(LEVEL, seeds, ExpertActor()), [1, 3])
    assert found.kept.all()
    assert found.success.all()
    assert not found.wrong[found.running].any()
    assert (found.regret[found.running] == 0).all()
    assert found.nll[found.running].max() < 0.01
    assert found.expert_first.all(), "a policy that takes over sees what was done before"


def test_contexts_share_states_and_differ_by_the_history() -> None:
    _, found = measured(previous_action=False)
    for name in ("wrong", "nll", "regret", "running", "success"):
        for own, other in ((0, 1), (2, 3)):
            np.testing.assert_array_equal(getattr(found, name)[own], getattr(found, name)[other])
    demonstrated, found = measured()
    assert (found.nll[0] != found.nll[1]).any()
    assert (found.nll[2] != found.nll[3]).any()
    assert found.wrong.shape == (4, 6, max(len(trial.actions) for trial in demonstrated))
    assert found.running[EE].sum() == sum(len(trial.actions) for trial in demonstrated)
    assert found.success[EE].all()
    for one, other in ((0, 1), (2, 3)):
        assert (found.running[one] == found.running[other]).all()
    assert (found.wrong[EE, :, 0] == found.wrong[OO, :, 0]).all(), "all begin in the same state"


def test_free_running_is_what_happened() -> None:
    _, found = measured()
    trials = play(LEVEL, layout_seeds(LEVEL, "test", 6), clumsy().actor())
    regrets = choice_regrets(LEVEL, trials, [trial.actions[None] for trial in trials])
    for number, (trial, regret) in enumerate(zip(trials, regrets, strict=True)):
        steps = int(found.running[OO, number].sum())
        assert steps == min(len(trial.actions), found.running.shape[-1])
        np.testing.assert_array_equal(found.wrong[OO, number, :steps], (trial.actions != trial.advice)[:steps])
        np.testing.assert_array_equal(found.regret[OO, number, :steps], regret[0, :steps])
        assert found.success[OO, number] == trial.success


def answers(policy: SequencePolicy, trial: Trial, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (T, actions) by one forward pass over a whole episode of the expert."""
    encoder = policy.encoder
    pixels = torch.from_numpy(atlas(8).decode(trial.codes[:-1]))
    words = torch.from_numpy(encoder.vocabulary.encode([trial.mission]))
    features, history = encoder.encode_frames(pixels)[None], torch.tensor([[-1, *tokens]])
    with torch.no_grad():
        logits = policy.logits(features, history, words, torch.ones_like(history, dtype=torch.bool))
    return logits.log_softmax(-1)[0]


def test_the_experts_states_by_the_forward_pass() -> None:
    demonstrated, found = measured()
    rng = episode_rng(0)
    uniform = torch.from_numpy(np.stack([rng.draw(np.full(6, t == 0), 7) for t in range(20)], axis=1))
    for number, trial in enumerate(demonstrated):
        steps = len(trial.actions)
        own: list[int] = []
        for t in range(steps):
            log = answers(clumsy(), trial, [*own, *[0] * (steps - 1 - t)])
            own.append(int(sample(log, uniform[number, :steps])[t]))
        for row, tokens in ((0, trial.actions[:-1].tolist()), (1, own[:-1])):
            log = answers(clumsy(), trial, tokens)
            choice = sample(log, uniform[number, :steps]).numpy()
            np.testing.assert_array_equal(found.wrong[row, number, :steps], choice != trial.advice)
            nll = -log[torch.arange(steps), torch.from_numpy(trial.advice)].numpy()
            np.testing.assert_allclose(found.nll[row, number, :steps], nll, atol=1e-4)


def test_switches_join_the_expert_and_the_policy() -> None:
    demonstrated, found = measured()
    alone = found.success[OO].tolist()
    assert not all(alone)
    assert found.learner_first[0].all()
    assert found.learner_first[-1].tolist() == found.expert_first[0].tolist() == alone
    assert found.expert_first[-1].all()
    failed = record(clumsy(), LEVEL, [*demonstrated[:-1], replace(demonstrated[-1], success=False)])
    assert failed.kept.tolist() == [True] * 5 + [False], "an episode that the expert fails keeps its place"


def make_record(wrong: Sequence[object], running: object = None, success: object = None) -> Record:
    """A record in which every error costs a step, of errors (4, E, T)."""
    errors = np.array(wrong, bool)
    alive = np.ones_like(errors) if running is None else np.array(running, bool)
    solved = np.ones(errors.shape[:2], bool) if success is None else np.array(success, bool)
    nothing = np.zeros((0, errors.shape[1]), bool)
    nll = np.where(errors, 2.0, 0.5)
    return Record(errors, nll, errors.astype(float), alive, solved, np.zeros(0, np.int64), nothing, nothing)


def test_records_survive_the_disk_and_bad_ones_are_refused(tmp_path: Path) -> None:
    _, found = measured()
    path = tmp_path / "contexts.npz"
    found.save(path)
    for name, array in vars(Record.load(path)).items():
        np.testing.assert_array_equal(array, getattr(found, name))
    path.write_bytes(b"PK half a file")
    with pytest.raises(RlpreError, match=r"contexts.npz cannot be read .*: delete .* and run the study again"):
        Record.load(path)
    with pytest.raises(RlpreError, match="log-likelihood of an expert's action is not finite"):
        replace(found, nll=np.full_like(found.nll, np.inf))
    with pytest.raises(RlpreError, match="all test episodes were dropped: choose a level that the expert solves"):
        replace(found, running=np.zeros_like(found.running))


def test_numbers_by_hand() -> None:
    """Two episodes of two and three steps; one of the learner's goes on to the fourth."""
    short, long = [[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 1, 0, 0], [1, 1, 1, 1]]
    ee, eo = [[1, 0, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 0, 1, 0]]
    oe, oo = [[1, 0, 0, 0], [0, 1, 0, 0]], [[1, 0, 0, 0], [1, 1, 0, 1]]
    one = make_record([ee, eo, oe, oo], [short, short, long, long])
    found = {name: values[0].value for name, values in numbers({0: one}, 5, np.random.default_rng(0)).items() if values}
    expected = {"EE": 0.5, "EO": 1, "OE": 1, "OO": 2, "excess": 1.5, "percent": 300, "interaction": 0.5}
    # alive, up to step 3, the last of the expert's: OO 2/2 + 1/2 + 0/1, EE 1/2
    expected |= {"excess alive": 1}
    for measure in ("error", "regret error"):
        assert {name: found[f"{measure} {name}"] for name in expected} == pytest.approx(expected)
    # OO was wrong at 1, 1, 2 with a step after: right after the first and the third
    assert found["recovery OO"] == pytest.approx(2 / 3)
    assert found["nll EE"] == pytest.approx((2 + 4 * 0.5) / 5)
    rows = one.measurements(5)
    assert rows["errors OO"] == 2
    assert rows["error OO"] == [(1, 1.0), (2, 0.5), (3, 0.0), (4, 0.5), (5, 0.0)]
    assert one.measurements(2)["errors OO"] == 1.5, "the horizon cuts"
    free = replace(one, regret=np.zeros_like(one.regret))
    assert free.measurements(5)["regret errors OO"] == 0, "an error that costs nothing is no regret error"


def test_accumulated_error_and_slope_by_hand() -> None:
    forced, free = np.array([0.1, 0.1, 0.1]), np.array([0.1, 0.2, 0.3])
    assert metrics.accumulated(free, forced) == pytest.approx([1, 3, 6])  # 1 x .1/.1, 2 x .3/.2, 3 x .6/.3
    assert np.isnan(metrics.accumulated(free, np.array([0.0, 0.1, 0.1]))).tolist() == [True, False, False]
    steps = np.arange(1, 41)
    for growth in (1.0, 1.5, 2.0):
        total = 0.002 * steps**growth  # so that AccErr(l) = l^growth
        free = np.diff(total, prepend=0.0)
        beyond = np.where(total < 0.3, free, 10.0)  # must not count
        assert metrics.slope(beyond, np.full(40, 0.002)) == pytest.approx(growth)
    assert np.isnan(metrics.slope(np.full(9, 0.12), np.full(9, 0.1)))  # above .3 after two points
    assert metrics.slope(np.stack([free, free]), np.full((2, 40), 0.002)).shape == (2,)


@pytest.mark.parametrize("recover", [0.0, 0.3, 0.98])
def test_a_decision_process_with_a_known_excess(recover: float) -> None:
    """In the expert's states it errs with .02; an error leads to states where it errs until it recovers."""
    error, steps, rng, records = 0.02, 30, np.random.default_rng(1), {}
    for seed in range(3):
        forced, uniform = rng.random((400, steps)) < error, rng.random((400, steps))
        free = [uniform[:, 0] < error]
        for t in range(1, steps):
            free.append(uniform[:, t] < np.where(free[-1], 1 - recover, error))
        wrong = np.stack(free, axis=1)
        records[seed] = make_record([forced, forced, wrong, wrong])
    found = {name: values[0] for name, values in numbers(records, steps, rng).items() if values}
    limit, factor = error / (error + recover), 1 - recover - error
    expected = (limit + (error - limit) * factor ** np.arange(steps)).sum() - steps * error
    excess, recovered = found["error excess"], found["recovery OO"]
    assert excess.low < expected < excess.high
    assert excess.high - excess.low < 2
    assert (excess.low > 0) == (recover < 0.9)  # no excess if every error is recovered at once
    assert recovered.low <= recover <= recovered.high
    assert found["error interaction"].value == pytest.approx(0)  # all of it comes from the states


def policy(forced: float, free: float, solved: float, seed: int = 0, seeds: int = 3) -> dict[int, Record]:
    """A policy with these regret errors per step of EE and OO; the episodes differ in how hard they are."""
    rng, hard = np.random.default_rng(seed), np.random.default_rng(99).uniform(0.5, 1.5, (300, 1))
    records = {}
    for number in range(seeds):
        ee, oo = (rng.random((300, 10)) < np.clip(rate * hard, 0, 1) for rate in (forced, free))
        success = rng.random(300) < solved
        records[number] = make_record([ee, ee, oo, oo], success=[np.ones(300)] * 2 + [success] * 2)
    return records


@pytest.mark.parametrize(
    ("forced", "free", "solved", "verdict"),
    [
        (0.10, 0.30, 0.60, NOTHING),  # the same policy
        (0.10, 0.14, 0.90, CURES),
        (0.10, 0.24, 0.70, REDUCES),
        (0.10, 0.36, 0.60, HARMS),  # more errors on its own
        (0.10, 0.36, 0.90, NOTHING),  # more errors on its own, and more successes
        (0.10, 0.14, 0.30, HARMS),  # fewer errors, fewer successes
        (0.05, 0.25, 0.60, NOTHING),  # better everywhere: the excess stays
        (0.30, 0.30, 0.60, NOTHING),  # worse in the expert's contexts, not better on its own
        (0.28, 0.27, 0.70, REDUCES),  # hardly better on its own: most of the excess went because EE is worse
    ],
)
def test_verdicts(forced: float, free: float, solved: float, verdict: str) -> None:
    found = change(policy(forced, free, solved, seed=1), policy(0.10, 0.30, 0.60), 10, np.random.default_rng(0))
    assert found.verdict == verdict
    assert found.before.low > 0
    assert found.forced.value == pytest.approx(10 * (forced - 0.10), abs=0.15)
    assert found.free.value == pytest.approx(10 * (free - 0.30), abs=0.15)
    assert found.excess.value == pytest.approx(found.free.value - found.forced.value)
    assert found.removed == pytest.approx(max(0, min(0.30 - free, 0.20 - free + forced)) / 0.2, abs=0.1)


def test_changes_need_an_excess_and_pairs() -> None:
    rng, clone = np.random.default_rng(0), policy(0.10, 0.30, 0.60)
    found = change(policy(0.2, 0.1, 0.9, seed=1), policy(0.2, 0.2, 0.9), 10, rng)
    assert (found.excess.high < 0, found.free.high < 0, found.removed, found.verdict) == (True, True, None, NOTHING)
    assert change({2: clone[2], 0: clone[0]}, clone, 10, rng).verdict == NO_VERDICT  # two seeds
    assert change(clone, clone, 10, rng).excess.high == 0  # every pair is a tie
    assert change({0: clone[0]}, {1: clone[1]}, 10, rng) is None


def mean_of(values: np.ndarray, kept: np.ndarray, rng: np.random.Generator) -> metrics.Interval:
    return metrics.estimate(values, kept, lambda means: {"mean": means}, rng)["mean"][0]


def test_crossed_interval_by_hand() -> None:
    rng, every = np.random.default_rng(0), np.ones((3, 50), bool)
    by_seed = np.broadcast_to(np.array([0.0, 3.0, 6.0])[:, None, None], (3, 50, 1))
    found = mean_of(by_seed, every, rng)
    # as three runs: mean 3, standard error 3 / sqrt(3), t(0.975, 2) = 4.303
    assert (found.value, found.n) == (3, 3)
    assert found.high - found.value == pytest.approx(7.452, rel=0.1)
    found = mean_of(np.broadcast_to(np.arange(50.0)[None, :, None], (3, 50, 1)), every, rng)
    # as 50 values that three seeds only repeat: their deviation is 14.577, over sqrt(50), t(0.975, 49) = 2.010
    assert found.value == 24.5
    assert found.high - found.value == pytest.approx(4.143, rel=0.1)
    kept = np.arange(50) < np.array([50, 50, 10])[:, None]
    assert mean_of(by_seed, kept, rng).value == pytest.approx((0 * 50 + 3 * 50 + 6 * 10) / 110)
    two = mean_of(by_seed[:2], kept[:2], rng)
    assert (two.value, two.low, two.high, two.n) == (1.5, None, None, 2)


def test_a_number_that_is_seldom_defined_has_no_interval() -> None:
    values = np.zeros((3, 50, 1))
    values[:, 0] = 1  # a resample in three lacks the only episode that counts
    kept, rng = np.ones((3, 50), bool), np.random.default_rng(0)
    (found,) = metrics.estimate(values, kept, lambda means: {"": np.where(means > 0, means, np.nan)}, rng)[""]
    assert (found.value, found.low) == (0.02, None)


def test_crossed_interval_covers_the_mean_when_layouts_differ_most() -> None:
    rng, covered, nested = np.random.default_rng(3), 0, 0
    kept = np.ones((5, 60), bool)
    for _ in range(100):
        scores = rng.normal(size=(1, 60)) + 0.1 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(5, 60))
        found = mean_of(scores[..., None], kept, rng)
        covered += found.low <= 0 <= found.high
        seeds = scores.mean(axis=1)
        nested += abs(seeds.mean()) <= 2.776 * seeds.std(ddof=1) / np.sqrt(5)  # as if every seed had its own episodes
    assert covered / 100 == pytest.approx(0.95, abs=0.045)
    assert nested / 100 < 0.85
