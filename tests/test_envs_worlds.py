"""Worlds: equal to stock MiniGrid to the pixel, on every id; seeded; vectorised as SB3 expects."""

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils.env_checker import check_env
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Ball, Box, Door, Floor, Goal, Key, Lava, Wall, WorldObj
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import RGBImgObsWrapper, RGBImgPartialObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import envs
from envs.minigrid.worlds import CLAUSES, SEPARATORS, SHAPE, WORDS, GridVecEnv, GridWorld, clauses
from rlpre.errors import RlpreError

IDS = sorted(name for name in gym.registry if name.startswith(("MiniGrid-", "BabyAI-")))
STOCK = {"partial": RGBImgPartialObsWrapper, "full": RGBImgObsWrapper}
DOORKEY = "MiniGrid-DoorKey-6x6-v0"

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date.*")


def channel_first(observation: dict) -> np.ndarray:
    return observation["image"].transpose(2, 0, 1)


def busy_action(env: MiniGridEnv, rng: np.random.Generator) -> int:
    """A random action, biased to whatever the cell in front allows."""
    front = env.grid.get(*env.front_pos)
    if front is not None and rng.random() < 0.5:
        return 3 if front.can_pickup() and env.carrying is None else 5 if isinstance(front, Door | Box) else 2
    return int(rng.choice([0, 1, 2, 2, 2, 3, 4, 5]) % env.action_space.n)


def walk(ours: gym.Env, stock: gym.Env, steps: int, seed: int = 0) -> set[str]:
    """Steps both environments alike and compares everything; returns what happened on the way."""
    rng, happened = np.random.default_rng(seed), set()
    (frame, info), (expected, _) = ours.reset(seed=seed), stock.reset(seed=seed)
    for _ in range(steps):
        assert np.array_equal(frame, channel_first(expected))
        assert (info["mission"], info["direction"]) == (expected["mission"], expected["direction"])
        env = stock.unwrapped
        # Short episodes, so that truncation is met; both see the same limit.
        ours.unwrapped.max_steps = env.max_steps = min(env.max_steps, 12)
        action, doors = busy_action(env, rng), open_doors(env)
        frame, *outcome, info = ours.step(action)
        expected, *expected_outcome, _ = stock.step(action)
        assert outcome == expected_outcome
        reward, terminated, truncated = outcome
        happened |= {"carrying"} if env.carrying else set()
        happened |= {"toggling"} if open_doors(env) != doors else set()
        happened |= {"dying"} if terminated and reward <= 0 else set()
        happened |= {"truncation"} if truncated else set()
        if terminated or truncated:
            assert np.array_equal(frame, channel_first(expected))
            (frame, info), (expected, _) = ours.reset(), stock.reset()
    return happened


def open_doors(env: MiniGridEnv) -> int:
    return sum(isinstance(cell, Door) and cell.is_open for cell in env.grid.grid)


@pytest.mark.parametrize("view", STOCK)
@pytest.mark.parametrize("env_id", IDS)
def test_every_id_equals_stock(env_id: str, view: str) -> None:
    stock = STOCK[view](gym.make(env_id, disable_env_checker=True))
    ours = envs.make(env_id, view=view)
    try:
        stock.reset(seed=0)
    except (ImportError, FileNotFoundError, DependencyNotInstalled):  # the WFC worlds lack files in MiniGrid's wheel
        with pytest.raises(RlpreError, match=f"the installed minigrid cannot build {env_id}"):
            ours.reset(seed=0)
        return
    assert ours.observation_space == spaces.Box(0, 255, channel_first(stock.reset(seed=0)[0]).shape, np.uint8)
    walk(ours, stock, steps=16)


@pytest.mark.parametrize("view", STOCK)
@pytest.mark.parametrize(
    ("env_id", "event"),
    [
        ("MiniGrid-DoorKey-5x5-v0", "carrying"),
        ("MiniGrid-MultiRoom-N2-S4-v0", "toggling"),
        ("MiniGrid-LavaGapS5-v0", "dying"),
        ("MiniGrid-Dynamic-Obstacles-5x5-v0", "dying"),
        ("BabyAI-UnlockPickup-v0", "truncation"),
    ],
)
def test_the_walk_meets(env_id: str, event: str, view: str) -> None:
    stock = STOCK[view](gym.make(env_id, disable_env_checker=True))
    assert event in walk(envs.make(env_id, view=view), stock, steps=150)


class Sign(Ball):
    """Encodes like a ball and looks unlike one."""

    def render(self, img: np.ndarray) -> None:
        img[2:-2, 2:-2] = (12, 34, 56)


Maker = Callable[[str], WorldObj | None]
BALLLESS: tuple[Maker, ...] = (
    *(lambda _: None,) * 6,
    *(Wall,) * 4,
    *(Floor, Key, Box, Goal),
    lambda _: Lava(),
    lambda color: Door(color, is_open=True),
    lambda color: Door(color),
    lambda color: Door(color, is_locked=True),
)


class Jumble(MiniGridEnv):
    """A random grid of everything MiniGrid has, with a random load."""

    def __init__(self, things: tuple[Maker, ...] = (*BALLLESS, Ball), width: int = 9, **kwargs) -> None:
        self.things = things
        super().__init__(MissionSpace(lambda: "look"), width=width, height=6, **kwargs)

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        for x, y in np.ndindex(width, height):
            self.grid.set(x, y, self._rand_elem(self.things)(self._rand_color()))
        self.agent_pos = self._rand_pos(0, width, 0, height)
        self.agent_dir = self._rand_int(0, 4)
        self.grid.set(*self.agent_pos, self._rand_elem([None, Goal(), Floor("red"), Door("blue", is_open=True)]))

    def reset(self, **kwargs) -> tuple:
        result = super().reset(**kwargs)
        self.carrying = self._rand_elem([None, Key("yellow"), Box("grey"), Ball("purple")])
        return result


def drawn(env: MiniGridEnv, view: str) -> np.ndarray:
    frame = env.get_frame(highlight=env.highlight, tile_size=8, agent_pov=view == "partial")
    return frame.transpose(2, 0, 1)


@pytest.mark.parametrize("view", STOCK)
@pytest.mark.parametrize("size", [3, 5, 7, 9, 11])
@pytest.mark.parametrize("see_through_walls", [False, True])
def test_any_grid_equals_stock(view: str, size: int, see_through_walls: bool) -> None:
    env = GridWorld(Jumble(agent_view_size=size, see_through_walls=see_through_walls), view)
    for seed in range(25):
        env.unwrapped.highlight = view == "partial" or seed % 2 == 0
        frame, info = env.reset(seed=seed)
        assert np.array_equal(frame, drawn(env.unwrapped, view))
        if view == "partial":
            symbolic = env.unwrapped.gen_obs()["image"].transpose(1, 0, 2)
            codes = info["codes"].copy()
            assert np.array_equal(codes[..., 2] > 3, symbolic[..., 0] > 0)
            codes[..., 2] &= 3
            assert np.array_equal(codes, symbolic)


@pytest.mark.parametrize("view", STOCK)
def test_objects_changed_in_place_are_seen(view: str) -> None:
    env = GridWorld(Jumble(), view)
    env.reset(seed=0)
    for color in COLOR_NAMES:
        for cell in env.unwrapped.grid.grid:
            if isinstance(cell, Door):
                cell.is_open = not cell.is_open
            elif isinstance(cell, Ball | Wall | Box):
                cell.color = color
        frame = env.step(env.unwrapped.actions.done)[0]
        assert np.array_equal(frame, drawn(env.unwrapped, view))


@pytest.mark.parametrize("view", STOCK)
@pytest.mark.parametrize("palette", ["day", "night"])
def test_unknown_objects_are_drawn_by_minigrid(view: str, palette: str) -> None:
    Grid.tile_cache.clear()  # the stock cache takes a sign for a ball of its color, so the two must not meet
    env = GridWorld(Jumble(things=(*BALLLESS, lambda _: Sign("red")), width=40), view, palette=palette)
    codes = []
    for seed in range(20):
        frame, info = env.reset(seed=seed)
        x, y = env.unwrapped.agent_pos
        expected = drawn(env.unwrapped, view)
        if palette == "night":
            expected = envs.atlas(8).dim(expected, agent=6 * 7 + 3 if view == "partial" else y * 40 + x)
        assert np.array_equal(frame, expected)
        codes.append(info["codes"])
    assert any(code is None for code in codes)
    assert (view == "full") == all(code is None for code in codes)
    Grid.tile_cache.clear()


def test_unknown_objects_have_no_codes_to_store() -> None:
    venv = GridVecEnv([lambda: GridWorld(Jumble(things=(Sign,)))])
    venv.reset()
    with pytest.raises(RlpreError, match="without a tile"):
        _ = venv.codes
    Grid.tile_cache.clear()


@pytest.mark.parametrize("view", STOCK)
def test_night_pairs_with_day(view: str) -> None:
    day, night = envs.make(DOORKEY, view=view), envs.make(DOORKEY, view=view, palette="night")
    rng = np.random.default_rng(0)
    (bright, info), (dark, _) = day.reset(seed=3), night.reset(seed=3)
    for _ in range(30):
        assert np.array_equal(dark, envs.atlas(8).decode(info["codes"], "night"))
        assert np.array_equal(bright, envs.atlas(8).decode(info["codes"], "day"))
        assert (dark <= bright).all()
        assert 0 < dark.sum() < bright.sum()
        action = int(rng.integers(7))
        (bright, *_, info), (dark, *_) = day.step(action), night.step(action)


@pytest.mark.filterwarnings("ignore")  # the checker advises on things that MiniGrid decides
@pytest.mark.parametrize("dict_obs", [False, True])
@pytest.mark.parametrize("palette", ["day", "night"])
@pytest.mark.parametrize("view", STOCK)
def test_gymnasium_checker(view: str, palette: str, dict_obs: bool) -> None:
    check_env(
        envs.make("BabyAI-GoToObj-v0", view=view, tile_size=4, palette=palette, dict_obs=dict_obs),
        skip_render_check=True,
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("env_id", [name for name in IDS if "WFC" not in name])
def test_gymnasium_checker_on_every_id(env_id: str) -> None:
    check_env(envs.make(env_id), skip_render_check=True)


def test_the_spec_makes_the_world_again() -> None:
    env = envs.make(DOORKEY, view="full", tile_size=5, palette="night")
    again = gym.make(env.spec)
    assert np.array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_the_dict_holds_what_info_says() -> None:
    env = envs.make("BabyAI-BossLevel-v0", dict_obs=True)
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        assert np.array_equal(observation["mission"], clauses(info["mission"]))
        assert observation["direction"] == info["direction"]


def test_minigrid_observes_and_renders_as_ever_after_a_step() -> None:
    env, stock = envs.make(DOORKEY), gym.make(DOORKEY, render_mode="rgb_array")
    env.reset(seed=0)
    stock.reset(seed=0)
    env.step(0)
    assert np.array_equal(env.unwrapped.gen_obs()["image"], stock.step(0)[0]["image"])
    assert np.array_equal(env.render(), stock.render())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "MiniGrid-DoorKey-8x8"}, "did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"env_id": DOORKEY, "view": "ful"}, "did you mean 'full'"),
        ({"env_id": DOORKEY, "palette": "nite"}, "did you mean 'night'"),
        ({"env_id": DOORKEY, "tile_size": 0}, "tile_size is 0"),
    ],
)
def test_bad_input_of_make_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        envs.make(**arguments)
    with pytest.raises(RlpreError, match=message):
        envs.make_vec(**arguments, n_envs=1, seed=0)
    with pytest.raises(RlpreError, match="n_envs is 0"):
        envs.make_vec(DOORKEY, 0, 0)
    with pytest.raises(RlpreError, match="not a MiniGrid environment"):
        envs.make("CartPole-v1")


def equal(one: object, other: object) -> bool:
    """Deep equality of observations and infos, but for wall-clock times."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one if key != "t")
    return np.array_equal(one, other)


@pytest.mark.parametrize("dict_obs", [False, True])
@pytest.mark.parametrize(("view", "palette"), [("partial", "day"), ("full", "night")])
def test_vector_equals_dummy_vec_env(view: str, palette: str, dict_obs: bool) -> None:
    options = {"view": view, "palette": palette, "dict_obs": dict_obs}
    ours = envs.make_vec("MiniGrid-LavaGapS5-v0", 5, seed=7, **options)
    dummy = DummyVecEnv([lambda: envs.make("MiniGrid-LavaGapS5-v0", **options)] * 5)
    theirs = VecMonitor(dummy)
    dummy._seeds = list(ours.unwrapped._seeds)
    assert ours.observation_space == theirs.observation_space
    assert equal(ours.reset(), theirs.reset())
    rng, ended = np.random.default_rng(0), 0
    for _ in range(150):
        for env in (*ours.envs, *dummy.envs):
            env.unwrapped.max_steps = 6  # so that some die on the very step that truncates
        actions = rng.integers(0, 3, 5)
        observation, rewards, dones, infos = ours.step(actions)
        expected, expected_rewards, expected_dones, expected_infos = theirs.step(actions)
        codes = [info.pop("codes") for info in expected_infos]
        assert equal(observation, expected)
        assert np.array_equal(rewards, expected_rewards)
        assert np.array_equal(dones, expected_dones)
        assert all(map(equal, infos, expected_infos))
        assert set(ours.terminal_codes) == set(np.flatnonzero(dones))
        for i, code in enumerate(codes):
            assert np.array_equal(ours.terminal_codes[i] if dones[i] else ours.codes[i], code)
        ended += dones.sum()
    assert ended > 100


def test_observations_are_not_overwritten() -> None:
    venv = envs.make_vec(DOORKEY, 3, 0)
    first = venv.reset()
    kept, codes = first.copy(), venv.codes
    kept_codes = codes.copy()
    for action in (0, 1, 2, 2, 1):
        venv.step(np.full(3, action))
    assert np.array_equal(first, kept)
    assert np.array_equal(codes, kept_codes)
    assert not np.array_equal(venv.codes, codes)


def test_every_environment_has_its_own_stream() -> None:
    def starts(seed: int) -> np.ndarray:
        venv = envs.make_vec("MiniGrid-FourRooms-v0", 4, seed, view="full")
        return np.concatenate([venv.reset(), venv.reset()])

    assert np.array_equal(starts(0), starts(0))
    both = np.concatenate([starts(0), starts(1)])
    assert len(np.unique(both.reshape(16, -1), axis=0)) == 16


def test_sb3_interface() -> None:
    venv = envs.make_vec(DOORKEY, 4, 0)
    venv.reset()
    assert venv.get_attr("palette") == ["day"] * 4
    venv.set_attr("note", 3, indices=[1])
    assert venv.get_attr("note", indices=1) == [3]
    assert venv.env_method("get_wrapper_attr", "dict_obs", indices=[0, 2]) == [False, False]
    assert venv.env_is_wrapped(GridWorld) == [True] * 4
    assert venv.envs[2].unwrapped.grid.width == 6
    venv.close()


@pytest.mark.parametrize(("policy", "dict_obs"), [("CnnPolicy", False), ("MultiInputPolicy", True)])
def test_ppo_learns_on_it(policy: str, dict_obs: bool) -> None:
    venv = envs.make_vec("MiniGrid-Empty-5x5-v0", 4, 0, dict_obs=dict_obs)
    model = PPO(policy, venv, n_steps=32, batch_size=64, n_epochs=1, seed=0).learn(128)
    assert model.num_timesteps == 128
    assert model.get_env().unwrapped is venv.unwrapped  # nothing transposed, nothing wrapped


# Of each clause "put A next to B", joined in the longest ways of BabyAI's grammar.
LONGEST = (
    "put the grey ball on your left next to the red box behind you and put a key next to the door in front of you, "
    "then put the green key on your right next to a blue door and put the purple object next to the yellow ball"
)


def words(mission: str) -> list[set[str]]:
    return [{WORDS[i] for i in np.flatnonzero(clause)} for clause in clauses(mission)]


@pytest.mark.parametrize(("view", "dict_obs", "extra"), [("partial", False, 0), ("full", False, 4), ("full", True, 4)])
def test_the_state_holds_what_the_observation_shows(view: str, dict_obs: bool, extra: int) -> None:
    venv = GridVecEnv([lambda: envs.make(DOORKEY, view=view, dict_obs=dict_obs, state=True)] * 3)
    venv.seed(0)
    venv.reset()
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        for env in venv.envs:
            env.unwrapped.max_steps = 12
        _, _, dones, infos = venv.step(rng.integers(0, 7, 3))
        for i, info in enumerate(infos):
            check_state(info["state"], venv.terminal_codes[i] if dones[i] else venv.codes[i], info, extra, dict_obs)
            if dones[i]:
                check_state(venv.reset_infos[i]["state"], venv.codes[i], venv.reset_infos[i], extra, dict_obs)
                ends += 1
    assert ends >= 10
    _, info = envs.make(DOORKEY, view=view, dict_obs=dict_obs, state=True).reset(seed=0)
    check_state(info["state"], info["codes"], info, extra, dict_obs)


def check_state(state: np.ndarray, codes: np.ndarray, info: dict, extra: int, dict_obs: bool) -> None:
    """Reads type, color, door state, agent, direction and mission back from a state."""
    cells = codes.shape[0] * codes.shape[1]
    assert state.dtype == np.float32
    assert len(state) == 20 * cells + extra + dict_obs * np.prod(SHAPE)
    kinds, colors, states = np.split(state[: 20 * cells].reshape(cells, 20), [11, 17], axis=1)
    flags = codes[..., 2].ravel()
    agents = kinds[:, 10].copy()
    kinds = kinds * (np.arange(11) < 10)
    for read, shown in ((kinds, codes[..., 0]), (colors, codes[..., 1]), (states, flags & 3)):
        assert (read.sum(1) == 1).all()
        assert np.array_equal(read.argmax(1), shown.ravel())
    assert np.array_equal(agents, flags >> 3 > 0)
    assert agents.sum() == 1
    if extra:
        assert state[20 * cells : 20 * cells + 4].argmax() == info["direction"]
    if dict_obs:
        assert np.array_equal(state[-np.prod(SHAPE) :].reshape(SHAPE), clauses(info["mission"]))


def test_no_state_where_an_object_has_none_and_none_unless_asked() -> None:
    strange = GridWorld(Jumble(things=(Sign,)), state=True)
    for env in (strange, GridVecEnv([lambda: strange])):
        with pytest.raises(RlpreError, match="holds an object without a tile, which its state lacks: leave out state"):
            env.reset()
    assert "state" not in envs.make(DOORKEY).reset(seed=0)[1]


def test_a_separator_opens_a_clause_and_the_longest_mission_fits() -> None:
    given = words("put the red ball next to the blue box")
    assert given == [{"put", "the", "red", "ball"}, {"next", "to", "the", "blue", "box"}] + [set()] * (CLAUSES - 2)
    assert not np.array_equal(*map(clauses, ("put a ball near the box", "put the box near a ball")))
    assert clauses(LONGEST).shape == SHAPE
    assert words(LONGEST)[-1] == {"next", "to", "the", "yellow", "ball"}


@pytest.mark.parametrize(
    ("mission", "named"), [("go to the teapot", "unknown word 'teapot'"), (LONGEST + " and go to a key", "8 clauses")]
)
def test_what_does_not_fit_is_refused(mission: str, named: str) -> None:
    with pytest.raises(RlpreError, match=named):
        clauses(mission)


@pytest.mark.filterwarnings("ignore")  # some ids have a newer version
def test_no_two_missions_of_minigrid_are_the_same() -> None:
    ids = [name for name in gym.registry if name.startswith("MiniGrid-") and "WFC" not in name]
    missions = set()
    for name in ids:
        space = gym.make(name, disable_env_checker=True).unwrapped.observation_space["mission"]
        assert isinstance(space, MissionSpace)
        space.seed(0)
        missions |= {space.sample() for _ in range(100)}
    assert len(missions) > 200
    assert len({clauses(mission).tobytes() for mission in missions}) == len(missions)
    assert set(WORDS) >= SEPARATORS
