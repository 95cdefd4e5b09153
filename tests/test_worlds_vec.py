"""Many worlds in one process: what SB3 expects, seeds, and bad input."""

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import envs
from envs.worlds import GridWorld
from rlpre.errors import RlpreError

DOORKEY = "MiniGrid-DoorKey-6x6-v0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "MiniGrid-DoorKey-8x8"}, "did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"env_id": "CartPole-v1"}, "not a MiniGrid environment"),
        ({"env_id": DOORKEY, "view": "ful"}, "did you mean 'full'"),
        ({"env_id": DOORKEY, "palette": "nite"}, "did you mean 'night'"),
        ({"env_id": DOORKEY, "tile_size": 0}, "tile_size is 0"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        envs.make(**arguments)
    with pytest.raises(RlpreError, match=message):
        envs.make_vec(**arguments, n_envs=1, seed=0)


def test_no_environments_are_refused() -> None:
    with pytest.raises(RlpreError, match="n_envs is 0"):
        envs.make_vec(DOORKEY, 0, 0)


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
    picture = venv.envs[0].render()
    assert venv.render().shape == (2 * picture.shape[0], 2 * picture.shape[1], 3)
    venv.close()


@pytest.mark.parametrize(("policy", "dict_obs"), [("CnnPolicy", False), ("MultiInputPolicy", True)])
def test_ppo_learns_on_it(policy: str, dict_obs: bool) -> None:
    venv = envs.make_vec("MiniGrid-Empty-5x5-v0", 4, 0, dict_obs=dict_obs)
    model = PPO(policy, venv, n_steps=32, batch_size=64, n_epochs=1, seed=0).learn(128)
    assert model.num_timesteps == 128
    assert model.get_env().unwrapped is venv.unwrapped  # nothing transposed, nothing wrapped
