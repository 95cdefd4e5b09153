"""Experts: success everywhere, shortest plans, advice in any state."""

import copy
import inspect
from collections import deque

import gymnasium as gym
import minigrid  # noqa: F401 (registers the ids)
import numpy as np
import pytest
from minigrid.core.actions import Actions
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.world_object import Key
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

from envs.minigrid.experts import Bot, expert_for

SMALL = ("DoorKey-5x5", "KeyCorridorS3R1", "MultiRoom-N2-S4", "LavaGapS5", "Empty-5x5")
LAVA = ("LavaCrossingS9N1", "LavaCrossingS9N2", "LavaCrossingS9N3", "LavaGapS7", "DistShift1")
SAFE = (
    *("Empty-5x5", "Empty-8x8", "DoorKey-5x5", "DoorKey-6x6", "DoorKey-8x8", "Unlock", "UnlockPickup"),
    *("KeyCorridorS3R1", "KeyCorridorS3R2", "KeyCorridorS3R3", "KeyCorridorS4R3"),
    *("MultiRoom-N2-S4", "MultiRoom-N4-S5", "SimpleCrossingS9N1", "SimpleCrossingS9N3", "FourRooms"),
)
BABYAI = ("GoToLocal", "PutNextLocal", "UnlockPickup", "KeyCorridorS3R3", "BlockedUnlockPickup")


def world(name: str) -> MiniGridEnv:
    ids = {spec.name: key for key, spec in gym.registry.items() if spec.namespace is None}
    return gym.make(ids[name], disable_env_checker=True).unwrapped


def play(env: MiniGridEnv, seed: int, noise: float = 0.0) -> tuple[float, list[int], list[int]]:
    """Return, the distances, and the advised actions of one episode of a noisy expert."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    expert, taken, done = expert_for(env), None, False
    reward, distances, advised = 0.0, [], []
    while not done:
        action, distance = expert.advise(taken)
        distances.append(distance)
        advised.append(action)
        allowed = [a for a in range(6) if a != 5 or getattr(env.grid.get(*env.front_pos), "type", "") != "box"]
        taken = int(rng.choice(allowed)) if rng.random() < noise or action < 0 else action
        _, reward, terminated, truncated, _ = env.step(taken)
        done = terminated or truncated
    return float(reward), distances, advised


@pytest.mark.parametrize(("name", "noise"), [*((name, 0.0) for name in SAFE + LAVA), *((name, 0.3) for name in SAFE)])
def test_the_planner_succeeds_and_recovers_from_any_mistake(name: str, noise: float) -> None:
    env = world(f"MiniGrid-{name}")
    for seed in range(20 if noise else 100):
        reward, distances, _ = play(env, seed, noise)
        assert reward > 0, f"{name} seed {seed}"
        assert min(distances) > 0
        assert noise or ((np.diff(distances) < 0).all() and distances[-1] == 1)


def test_the_bot_moves_what_blocks_a_door() -> None:
    env = world("MiniGrid-BlockedUnlockPickup")
    assert min(play(env, seed)[0] for seed in range(20)) > 0.9
    assert np.mean([play(env, seed, 0.3)[0] > 0 for seed in range(20)]) > 0.8


@pytest.mark.parametrize("name", LAVA)
def test_the_planner_never_advises_death(name: str) -> None:
    env = world(f"MiniGrid-{name}")
    for seed in range(20):
        env.reset(seed=seed)
        expert = expert_for(env)
        for _ in range(100):
            action, distance = expert.advise(None)
            front = env.grid.get(*env.front_pos)
            assert distance > 0
            assert not (action == 2 and front is not None and front.type == "lava")
            wander = int(env.np_random.integers(3))
            if wander != 2 or front is None:
                env.step(wander)


@pytest.mark.parametrize("name", SMALL)
def test_distances_are_those_of_exhaustive_search(name: str) -> None:
    env = world(f"MiniGrid-{name}")
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(2):
            assert expert_for(env).advise(None)[1] == shortest(env)
            for action in env.np_random.integers(2, size=2):
                env.step(int(action))


def shortest(env: MiniGridEnv) -> int:
    """Steps to success by breadth-first search over copies of the whole environment."""
    queue, seen = deque([(0, env)]), set()
    while True:
        depth, state = queue.popleft()
        for action in range(6):
            after = copy.deepcopy(state)
            _, reward, terminated, _, _ = after.step(action)
            if reward > 0:
                return depth + 1
            key = (*after.agent_pos, after.agent_dir, after.carrying is None, after.grid.encode().tobytes())
            if not terminated and key not in seen:
                seen.add(key)
                queue.append((depth + 1, after))


def test_a_key_that_blocks_the_corridor_is_moved_away() -> None:
    env = world("MiniGrid-KeyCorridorS3R1")
    env.reset(seed=0)
    left, middle, right = (env.grid.get(x, 1) for x in (1, 3, 5))
    assert (left.type, middle, right.type) == ("key", None, "ball")
    for x in (2, 4):
        env.grid.get(x, 1).is_open, env.grid.get(x, 1).is_locked = True, False
    env.grid.set(1, 1, None)
    env.put_obj(left, 3, 1)
    env.agent_pos, env.agent_dir = (2, 1), 0
    expert, actions, reward = expert_for(env), [], 0.0
    while not reward:
        action, distance = expert.advise(None)
        assert distance == 9 - len(actions)
        actions.append(action)
        _, reward, *_ = env.step(action)
    # pick up, turn round, drop in the left room, turn round, two cells ahead, take the ball
    assert [action for action in actions if action > 1] == [3, 4, 2, 2, 3]
    assert len(actions) == 9


def test_a_destroyed_target_is_unknown() -> None:
    env = world("MiniGrid-UnlockPickup")
    env.reset(seed=0)
    expert = expert_for(env)
    env.grid.set(*env.obj.cur_pos, None)
    assert expert.advise(None) == (-1, -1)


@pytest.mark.parametrize("name", BABYAI)
def test_the_bot_succeeds_and_relabels(name: str) -> None:
    env = world(f"BabyAI-{name}")
    assert all(play(env, seed)[0] > 0 for seed in range(10))
    noisy = [play(env, seed, noise=0.2) for seed in range(10)]
    assert np.mean([reward > 0 for reward, _, _ in noisy]) >= 0.9
    assert all(set(distances) == {-1} for _, distances, _ in noisy)


def test_the_bot_goes_silent_after_a_box_is_opened() -> None:
    env = world("BabyAI-UnlockPickup")
    env.reset(seed=0)
    expert = expert_for(env)
    assert expert.advise(None)[0] >= 0
    box = next(thing for thing in env.grid.grid if thing is not None and thing.type == "box")
    x, y = box.cur_pos
    way, (dx, dy) = next(
        (way, step)
        for way, step in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)])
        if env.grid.get(x - step[0], y - step[1]) is None
    )
    env.agent_pos, env.agent_dir = (x - dx, y - dy), way
    assert expert.advise(2)[0] >= 0
    env.step(5)
    assert expert.advise(5) == (-1, -1)
    assert expert.advise(2) == (-1, -1)


@pytest.mark.parametrize("name", ["MiniGrid-Fetch-5x5-N2", "BabyAI-KeyInBox"])
def test_worlds_without_an_expert(name: str) -> None:
    env = world(name)
    env.reset(seed=0)
    assert expert_for(env) is None


@pytest.mark.parametrize("name", ["BossLevel", "GoToObjMazeS5", *BABYAI])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_bot_sees_as_the_stock_bot_and_does_the_same_if_followed(name: str, noise: float) -> None:
    env, rng = world(f"BabyAI-{name}"), np.random.default_rng(0)
    for seed in range(3):
        env.reset(seed=seed)
        stock, expert, taken = BabyAIBot(env), expert_for(env), None
        for _ in range(60):
            advice, _ = expert.advise(taken)
            try:
                told = stock.replan(None if taken is None else Actions(taken))
            except (DisappearedBoxError, AssertionError):
                assert noise
                break
            assert noise or advice == told
            np.testing.assert_array_equal(expert.vis_mask, stock.vis_mask)
            taken = int(rng.integers(7)) if rng.random() < noise else advice
            if any(env.step(taken)[2:4]):
                break


@pytest.mark.parametrize("name", ["GoToSeqS5R2", "SynthLoc", "GoToObjMazeS5", *BABYAI])
def test_the_bot_ends_what_a_noisy_learner_began(name: str) -> None:
    env = world(f"BabyAI-{name}")
    steps, stock = (np.array([_relay(env, seed, make) for seed in range(40)]) for make in (Bot, BabyAIBot))
    assert (steps < env.max_steps).all()
    assert steps.mean() < 1.1 * stock.mean()
    if name in ("GoToSeqS5R2", "SynthLoc"):
        assert not (stock < env.max_steps).all(), "it would do"


def _relay(env: MiniGridEnv, seed: int, make: type[BabyAIBot], noise: float = 0.5, noisy: int = 40) -> int:
    """Steps of an episode in which a bot is disturbed at first and then followed; the most there are, if it fails."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    bot, taken = make(env), None
    for step in range(env.max_steps):
        try:
            taken = int(bot.replan(None if taken is None else Actions(taken)))
        except AssertionError:
            return env.max_steps
        if step < noisy and rng.random() < noise:
            box = getattr(env.grid.get(*env.front_pos), "type", "") == "box"
            taken = int(rng.choice(5 if box else 6))
        _, reward, terminated, truncated, _ = env.step(taken)
        if terminated or truncated:
            return step + 1 if reward > 0 else env.max_steps
    return env.max_steps


def test_the_bot_gives_up_where_nothing_can_be_reached() -> None:
    env = world("BabyAI-KeyInBox")
    assert _relay(env, 0, Bot, noise=0.0) == env.max_steps


def test_the_bot_plans_what_is_left() -> None:
    env = world("BabyAI-PutNextLocal")
    env.reset(seed=0)
    bot = Bot(env)
    while not env.carrying:
        env.step(bot.replan())
    env.step(Actions.left)
    assert bot.replan(Actions.left) != Actions.pickup
    assert [type(goal).__name__ for goal in bot.stack][:2] == ["DropSubgoal", "GoNextToSubgoal"]
    assert len(bot.stack) == 2, "what is to be put down there is carried already"


def test_the_bot_puts_down_what_it_does_not_need() -> None:
    env = world("BabyAI-GoToLocal")
    env.reset(seed=0)
    bot = Bot(env)
    bot.replan()
    env.carrying = Key("red")
    bot.replan(Actions.done)
    assert type(bot.stack[-2]).__name__ == "DropSubgoal"


def test_the_bot_opens_a_door_that_was_closed_before_what_it_saw() -> None:
    env = world("BabyAI-UnlockPickup")
    env.reset(seed=0)
    bot, taken = Bot(env), None
    door = next(thing for thing in env.grid.grid if thing is not None and thing.type == "door")
    while not door.is_open:
        taken = bot.replan(taken)
        env.step(taken)
    bot.replan(taken)
    assert bot.vis_mask[env.instrs.desc.obj_poss[0]]
    env.step(Actions.toggle)
    assert followed(env, bot, Actions.toggle) > 0


def test_the_bot_opens_a_door_where_there_is_no_place_for_what_it_holds() -> None:
    env = world("BabyAI-KeyCorridorS3R3")
    env.reset(seed=0)
    bot, (room, unneeded) = Bot(env), _shut_in(env)
    bot.replan()
    env.place_agent(0, room)
    env.carrying = Key(unneeded)
    assert followed(env, bot, Actions.done) > 0


def followed(env: MiniGridEnv, bot: Bot, taken: Actions) -> float:
    """The reward if the bot is followed to the end."""
    ends = [False]
    while not any(ends):
        taken = bot.replan(taken)
        _, reward, *ends, _ = env.step(taken)
    return float(reward)


def _shut_in(env: MiniGridEnv) -> tuple[int, str]:
    """A room of a single empty cell on the left, and a colour that no locked door has."""
    locked = {thing.color for thing in env.grid.grid if thing is not None and thing.type == "door" and thing.is_locked}
    room = next(row for row in range(env.num_rows) if env.grid.get(1, 1 + 2 * row) is None)
    return room, next(colour for colour in COLOR_NAMES if colour not in locked)


def test_the_bot_overrides_methods_that_the_installed_bot_calls() -> None:
    """Bot replaces parts of MiniGrid's bot that are private: a renamed part would silently not be replaced."""
    overridden = [name for name in vars(Bot) if hasattr(BabyAIBot, name) and not name.startswith("__")]
    assert set(overridden) == {"replan", "_find_obj_pos", "_find_drop_pos", "_process_obs"}
    source = inspect.getsource(inspect.getmodule(BabyAIBot))
    assert all(f".{name}(" in source for name in overridden if name.startswith("_"))
