"""Trials hold what happened, however many are played together; regret against brute force; layouts of two parts."""

import copy

import numpy as np
import pytest
from minigrid.core.actions import Actions

from envs import make
from envs.minigrid import trials
from envs.minigrid.experts import expert_for
from envs.minigrid.trials import ExpertActor, NoisyActor, Trial, choice_regrets, cost_to_go, enter, layout_seeds, play
from rlpre.errors import RlpreError

GOTO, PUT = "BabyAI-GoToLocal-v0", "BabyAI-PutNextLocal-v0"
LEVELS = {GOTO: 5, PUT: 12, "BabyAI-GoToObjMazeS5-v0": 29, "BabyAI-BlockedUnlockPickup-v0": 35}
LEVELS["BabyAI-KeyCorridorS3R3-v0"] = 59


class Spy:
    """Acts at random, streams of its own for each episode, and keeps what it was shown."""

    def __init__(self, seed: int = 0) -> None:
        self.random = trials.EpisodeRandom(np.random.default_rng(seed))
        self.shown: list[tuple[np.ndarray, list[str], np.ndarray, np.ndarray]] = []

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self.shown.append((frames.copy(), missions, advice, starts))
        return (self.random.draw(starts, 1)[:, 0] * len(Actions)).astype(int)


def wasteful(actor: trials.Actor, wasted: int) -> trials.Actor:
    """Does nothing in an episode's first step."""

    class Wasteful:
        def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
            return np.where(starts, wasted, actor.act(frames, missions, advice, starts))

    return Wasteful()


def slip(seed: int = 0, probability: float = 0.3) -> trials.Actor:
    return NoisyActor(ExpertActor(), probability, np.random.default_rng(seed))


def equal(first: Trial, second: Trial) -> bool:
    pairs = ((getattr(first, name), getattr(second, name)) for name in Trial.__dataclass_fields__)
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs)


@pytest.mark.parametrize(("level", "steps"), LEVELS.items())
def test_the_expert_succeeds(level: str, steps: int) -> None:
    played = play(level, layout_seeds(level, "test", 12), ExpertActor())
    assert all(trial.success and trial.terminated and not trial.lost for trial in played)
    assert all((trial.actions == trial.advice).all() for trial in played)
    assert 0.5 * steps < np.mean([len(trial.actions) for trial in played]) < 1.5 * steps


@pytest.mark.parametrize("make_actor", [ExpertActor, slip, Spy])
def test_worlds_played_together_change_nothing(make_actor: type) -> None:
    seeds = layout_seeds(GOTO, "train", 5)
    alone, two, many = (play(GOTO, seeds, make_actor(), n_envs=n) for n in (1, 2, 32))
    assert tuple(trial.seed for trial in alone) == seeds
    for others in (two, many):
        assert all(map(equal, alone, others))


def test_a_trial_can_be_played_again_step_by_step() -> None:
    seeds = layout_seeds(PUT, "train", 5)
    world = make(PUT, view="full", tile_size=4, palette="night")
    for trial in play(PUT, seeds, slip(1, 0.5), n_envs=2, view="full", tile_size=4, palette="night"):
        assert enter(world, trial.seed) == trial.layout
        assert world.grid_env.mission == trial.mission
        adviser, taken = expert_for(world), None
        for t, (action, advice) in enumerate(zip(trial.actions.tolist(), trial.advice, strict=True)):
            np.testing.assert_array_equal(world.render_frames([world.frame])[0][0], trial.codes[t])
            assert adviser.advise(taken)[0] == advice
            reward, terminated, truncated, _ = world.step_unrendered(taken := action)
            assert reward == trial.reward[t]
            assert (terminated or truncated) == (t == len(trial.actions) - 1)
        np.testing.assert_array_equal(world.render_frames([world.frame])[0][0], trial.codes[-1])
        assert trial.terminated == terminated
        assert trial.success == (reward > 0)


def test_actors_see_fixed_slots() -> None:
    seeds, spy = layout_seeds(GOTO, "train", 5), Spy()
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
    played = play(PUT, layout_seeds(PUT, "train", 60), slip(0, 0.4))
    known = [(trial.actions[trial.advice >= 0], trial.advice[trial.advice >= 0]) for trial in played]
    actions, advice = map(np.concatenate, zip(*known, strict=True))
    wrong = actions != advice
    assert wrong.mean() == pytest.approx(0.4 * 6 / 7, abs=0.04)
    assert np.bincount(actions[wrong], minlength=7).min() > 0.08 * wrong.sum()


def test_an_opened_box_loses_the_plan() -> None:
    lost = [trial for trial in play(GOTO, layout_seeds(GOTO, "train", 8), Spy()) if trial.lost]
    assert lost
    for trial in lost:
        t = np.flatnonzero(trial.advice >= 0)[-1]
        assert (trial.advice[: t + 1] >= 0).all()
        assert trial.actions[t] == Actions.toggle
        assert trial.codes[t, 5, 3, 0] == 7  # a box before the agent
        (regret,) = choice_regrets(GOTO, [trial], [trial.actions[None]])
        assert np.isnan(regret[0, t + 1 :]).all()
        assert not np.isnan(regret[0, :t]).any()


@pytest.mark.parametrize("level", [GOTO, "BabyAI-BlockedUnlockPickup-v0"])
def test_a_wasted_step_costs_one(level: str) -> None:
    played = play(level, layout_seeds(level, "test", 8), wasteful(ExpertActor(), Actions.done))
    for (regret,) in choice_regrets(level, played, [trial.actions[None] for trial in played]):
        assert regret[0] == 1
        assert not regret[1:].any()


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
    for trial in play(level, layout_seeds(level, "train", count), actor):
        assert not trial.lost
        (regrets,) = choice_regrets(level, [trial], [trial.actions[None]])
        enter(world, trial.seed)
        adviser, taken = expert_for(world), None
        for action, advice, regret in zip(trial.actions.tolist(), trial.advice, regrets[0], strict=True):
            adviser.advise(taken)
            inner = world.grid_env
            assert regret == (left(inner, adviser, action) - left(inner, adviser, advice) if action != advice else 0)
            compared += action != advice
            world.step_unrendered(taken := action)
    assert compared >= 5


def test_what_is_left_of_the_episode_does_not_matter() -> None:
    world = make(PUT)
    enter(world, 0)
    adviser = expert_for(world)
    advice, _ = adviser.advise(None)
    whole = cost_to_go(world.grid_env, adviser, advice)
    world.grid_env.step_count = world.grid_env.max_steps - 2
    assert cost_to_go(world.grid_env, adviser, advice) == whole
    assert whole == len(play(PUT, [0], ExpertActor())[0].actions)


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
        play(**{"level": GOTO, "seeds": [0], "actor": ExpertActor(), **change})


def test_grid_pose_and_mission_make_a_layout() -> None:
    world = make(GOTO)
    first = enter(world, 3)
    assert enter(make(GOTO), 3) == first
    inner = world.grid_env
    found = {first}
    inner.agent_dir = (inner.agent_dir + 1) % 4
    found.add(trials.layout(inner))
    inner.mission = "go to the moon"
    found.add(trials.layout(inner))
    inner.grid.set(*inner.agent_pos, None)
    inner.agent_pos = tuple(np.add(inner.agent_pos, (1, 0)))
    found.add(trials.layout(inner))
    inner.grid.vert_wall(1, 1, 2)
    found.add(trials.layout(inner))
    assert len(found) == 5
    many = [enter(world, seed) for seed in range(200)]
    assert 0 <= min(many) < 2**13
    assert 2**14 < max(many) < 2**15
    assert len(set(many)) > 190


def test_every_seed_belongs_to_one_part_and_no_layout_to_both() -> None:
    train, test = layout_seeds(GOTO, "train", 80), layout_seeds(GOTO, "test", 20)
    last = min(train[-1], test[-1])
    assert sorted(seed for seed in train + test if seed <= last) == list(range(last + 1))
    world = make(GOTO)
    assert all(trials.is_test(enter(world, seed)) for seed in test)
    assert not {enter(world, seed) for seed in train} & {enter(world, seed) for seed in test}
    assert layout_seeds(GOTO, "train", 5, first=train[3]) == train[3:8]
    assert np.mean([trials.is_test(layout) for layout in range(trials.LAYOUTS)]) == pytest.approx(0.2, abs=1e-4)


def test_minigrid_keeps_its_rejections_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    world = make(GOTO)
    for seed in range(20):
        world.reset(seed=seed)
    assert capsys.readouterr().out == ""
    for seed in range(20):
        world.unwrapped.reset(seed=seed)
    assert "Sampling rejected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GOTO, "tests", 1), "unknown part 'tests': did you mean 'test'"),
        ((GOTO, "test", 0), "cannot find 0 seeds from 0 on"),
        ((GOTO, "test", 1, -1), "cannot find 1 seeds from -1 on"),
        (("BabyAI-GoToLocale-v0", "test", 1), "did you mean 'BabyAI-GoToLocal"),
    ],
)
def test_bad_layout_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        layout_seeds(*arguments)


def test_a_level_with_one_layout_cannot_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "MOST_MISSES", 20)
    level = "MiniGrid-Empty-5x5-v0"
    (there, absent) = ("test", "train") if trials.is_test(enter(make(level), 0)) else ("train", "test")
    assert layout_seeds(level, there, 3) == (0, 1, 2)
    with pytest.raises(RlpreError, match=f"{level} has too few layouts for a part '{absent}'"):
        layout_seeds(level, absent, 1)
