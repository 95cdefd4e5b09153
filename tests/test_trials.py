"""Trials: what is kept is what happened, whatever plays together; what an action cost, against brute force."""

import copy
import dataclasses

import numpy as np
import pytest
from minigrid.core.actions import Actions

from envs import layouts, make, trials
from envs.experts import expert_for
from envs.regret import cost_to_go, regrets
from envs.trials import Trial, expert, noisy, play
from rlpre.errors import RlpreError

GOTO, PUT = "BabyAI-GoToLocal-v0", "BabyAI-PutNextLocal-v0"
LEVELS = {GOTO: 5, PUT: 12, "BabyAI-GoToObjMazeS5-v0": 29, "BabyAI-BlockedUnlockPickup-v0": 35}
LEVELS["BabyAI-KeyCorridorS3R3-v0"] = 59


class Spy:
    """Acts at random, streams of its own for each episode, and keeps what it was shown."""

    def __init__(self, seed: int = 0) -> None:
        self.dice = trials.Dice(np.random.default_rng(seed))
        self.shown: list[tuple[np.ndarray, list[str], np.ndarray, np.ndarray]] = []

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self.shown.append((frames.copy(), missions, advice, starts))
        return (self.dice.roll(starts, 1)[:, 0] * len(Actions)).astype(int)


def wasteful(actor: trials.Actor, wasted: int) -> trials.Actor:
    """Does nothing in an episode's first step."""

    class Wasteful:
        def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
            return np.where(starts, wasted, actor.act(frames, missions, advice, starts))

    return Wasteful()


def slip(seed: int = 0, probability: float = 0.3) -> trials.Actor:
    return noisy(expert(), probability, np.random.default_rng(seed))


def equal(first: Trial, second: Trial) -> bool:
    pairs = ((getattr(first, name), getattr(second, name)) for name in Trial.__dataclass_fields__)
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs)


@pytest.mark.parametrize(("level", "steps"), LEVELS.items())
def test_the_expert_succeeds(level: str, steps: int) -> None:
    played = play(level, trials.test_seeds(level, 12), expert(), regret=True)
    assert all(trial.success and trial.terminated and not trial.lost for trial in played)
    assert all((trial.actions == trial.advice).all() and not trial.regret.any() for trial in played)
    assert 0.5 * steps < np.mean([len(trial.actions) for trial in played]) < 1.5 * steps


@pytest.mark.parametrize("make_actor", [expert, slip, Spy])
def test_worlds_played_together_change_nothing(make_actor: type) -> None:
    seeds = trials.train_seeds(GOTO, 5)
    alone, two, many = (play(GOTO, seeds, make_actor(), regret=True, n_envs=n) for n in (1, 2, 32))
    assert [trial.seed for trial in alone] == seeds
    for others in (two, many):
        assert all(map(equal, alone, others))


def test_asking_for_regret_changes_nothing_else() -> None:
    seeds = trials.train_seeds(PUT, 6)
    asked, not_asked = (play(PUT, seeds, slip(), regret=regret) for regret in (True, False))
    assert all(np.isnan(trial.regret).all() for trial in not_asked)
    assert not any(np.isnan(trial.regret).any() for trial in asked if not trial.lost)
    for first, second in zip(asked, not_asked, strict=True):
        assert equal(dataclasses.replace(first, regret=second.regret), second)


def test_a_trial_can_be_played_again_step_by_step() -> None:
    seeds = trials.train_seeds(PUT, 5)
    world = make(PUT, "full", 4, "night")
    for trial in play(PUT, seeds, slip(1, 0.5), n_envs=2, view="full", tile_size=4, palette="night"):
        assert layouts.enter(world, trial.seed) == trial.layout
        assert world.grid_env.mission == trial.mission
        adviser, taken = expert_for(world), None
        for t, (action, advice) in enumerate(zip(trial.actions.tolist(), trial.advice, strict=True)):
            np.testing.assert_array_equal(world.develop([world.glance])[0][0], trial.codes[t])
            assert adviser.advise(taken)[0] == advice
            reward, terminated, truncated, _ = world.advance(taken := action)
            assert reward == trial.reward[t]
            assert (terminated or truncated) == (t == len(trial.actions) - 1)
        np.testing.assert_array_equal(world.develop([world.glance])[0][0], trial.codes[-1])
        assert trial.terminated == terminated
        assert trial.success == (reward > 0)


def test_actors_see_fixed_slots() -> None:
    seeds, spy = trials.train_seeds(GOTO, 5), Spy()
    played = play(GOTO, seeds, spy, n_envs=2)
    frames, missions, advice, starts = zip(*spy.shown, strict=True)
    assert {frame.shape for frame in frames} == {(2, 3, 56, 56)}
    assert {len(mission) for mission in missions} == {2}
    assert np.array(advice).dtype == np.int64
    starts = np.array(starts)
    assert starts[0].all()
    assert starts.sum() == len(seeds)
    first = np.flatnonzero(starts[:, 0])
    assert first[1] in {len(trial.actions) for trial in played[:2]}
    begun = [(int(step), int(slot)) for step, slot in np.argwhere(starts)]  # in the order of the seeds
    assert [missions[step][slot] for step, slot in begun] == [trial.mission for trial in played]
    atlas = make(GOTO).atlas
    for (step, slot), trial in zip(begun, played, strict=True):
        np.testing.assert_array_equal(frames[step][slot], atlas.decode(trial.codes[0]))


def test_noise_is_uniform_and_as_frequent_as_asked() -> None:
    played = play(PUT, trials.train_seeds(PUT, 60), slip(0, 0.4))
    known = [(trial.actions[trial.advice >= 0], trial.advice[trial.advice >= 0]) for trial in played]
    actions, advice = map(np.concatenate, zip(*known, strict=True))
    wrong = actions != advice
    assert wrong.mean() == pytest.approx(0.4 * 6 / 7, abs=0.04)
    assert np.bincount(actions[wrong], minlength=7).min() > 0.08 * wrong.sum()


def test_an_opened_box_loses_the_plan() -> None:
    lost = [trial for trial in play(GOTO, trials.train_seeds(GOTO, 8), Spy(), regret=True) if trial.lost]
    assert lost
    for trial in lost:
        t = np.flatnonzero(trial.advice >= 0)[-1]
        assert (trial.advice[: t + 1] >= 0).all()
        assert trial.actions[t] == Actions.toggle
        assert trial.codes[t, 5, 3, 0] == 7  # a box before the agent
        assert np.isnan(trial.regret[t:]).all()
        assert not np.isnan(trial.regret[:t]).any()


def test_regret_by_hand() -> None:
    nan = np.nan
    np.testing.assert_array_equal(regrets(np.array([True, False, True]), np.array([nan, 5, nan, 6]), 10), [0, 3, 0])
    np.testing.assert_array_equal(regrets(np.array([True, False, True]), np.array([nan, 5, nan, 6]), 7), [0, 2, 0])
    np.testing.assert_array_equal(regrets(np.array([False, False]), np.array([5, 7, 3]), 9), [3, -3])
    np.testing.assert_array_equal(regrets(np.array([False, False]), np.array([5, nan, 3]), 9), [nan, nan])
    np.testing.assert_array_equal(regrets(np.array([False, False]), np.array([9, 9, 9]), 9), [0, 0])


@pytest.mark.parametrize("level", [GOTO, "BabyAI-BlockedUnlockPickup-v0"])
def test_a_wasted_step_costs_one(level: str) -> None:
    for trial in play(level, trials.test_seeds(level, 8), wasteful(expert(), Actions.done), regret=True):
        assert trial.regret[0] == 1
        assert not trial.regret[1:].any()


def left(world: object, adviser: object, action: int) -> float:
    """The cost-to-go after an action, by playing copies."""
    world, adviser = copy.deepcopy((world, adviser))
    world.step_count = 0
    reward, terminated = world.step(action)[1:3]
    if terminated:
        return 0.0 if reward > 0 else float(world.max_steps)
    return cost_to_go(world, adviser, adviser.advise(action)[0])


@pytest.mark.parametrize(
    ("level", "actor", "count"),
    [
        (GOTO, slip(2), 5),
        (GOTO, Spy(2), 2),  # until time is up
        ("BabyAI-BlockedUnlockPickup-v0", slip(2), 1),
        ("MiniGrid-DoorKey-6x6-v0", slip(2), 3),  # by the planner
    ],
)
def test_regret_is_what_playing_on_after_either_action_says(level: str, actor: trials.Actor, count: int) -> None:
    world, compared = make(level), 0
    for trial in play(level, trials.train_seeds(level, count), actor, regret=True):
        assert not trial.lost
        layouts.enter(world, trial.seed)
        adviser, taken = expert_for(world), None
        for action, advice, regret in zip(trial.actions.tolist(), trial.advice, trial.regret, strict=True):
            adviser.advise(taken)
            inner = world.grid_env
            assert regret == (left(inner, adviser, action) - left(inner, adviser, advice) if action != advice else 0)
            compared += action != advice
            world.advance(taken := action)
    assert compared >= 5


def test_what_is_left_of_the_episode_does_not_matter() -> None:
    world = make(PUT)
    layouts.enter(world, 0)
    adviser = expert_for(world)
    advice, _ = adviser.advise(None)
    whole = cost_to_go(world.grid_env, adviser, advice)
    world.grid_env.step_count = world.grid_env.max_steps - 2
    assert cost_to_go(world.grid_env, adviser, advice) == whole
    assert whole == len(play(PUT, [0], expert())[0].actions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "cannot play 0 seeds in 32 worlds"),
        ({"n_envs": 0}, "cannot play 1 seeds in 0 worlds"),
        ({"level": "MiniGrid-Fetch-5x5-N2-v0"}, "there is no expert for MiniGrid-Fetch"),
        ({"level": "BabyAI-PutNextS5N2Carrying-v0"}, "there is no expert for BabyAI-PutNextS5N2Carrying"),
        ({"palette": "dusk"}, "unknown palette 'dusk'"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        play(**{"level": GOTO, "seeds": [0], "actor": expert(), **change})
