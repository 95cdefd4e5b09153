"""Recipes that remember: each trains, keeps what is frozen, and its policy acts on windows of pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from minigrid.core.constants import OBJECT_TO_IDX
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from test_agents import FRAMES, TINY, same_evaluations, same_weights, weights

import envs
from agents import RECIPES, TrainConfig, train
from agents.film import film
from agents.recipes import Backbone
from envs.worlds import NARROW_MEMORY
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, RlpreError, SequenceEncoder
from rlpre.files import read_json

ENV = "MiniGrid-MemoryS7-v0"
HISTORY = [name for name, recipe in RECIPES.items() if recipe.history]
IN_FRONT = ["history-frozen"]  # of the policy stands the encoder, unless it is a GRU


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of frames, and one of a sequence encoder."""
    home = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    frames = Encoder("cnn", FRAMES, features=16)
    frames.save(home / "frames")
    SequenceEncoder("transformer", frames, actions=7, width=16, heads=2, window=5).save(home / "sequence")
    return home


def tiny(agent: str, home: Path, **changes: object) -> TrainConfig:
    encoder = home / ("sequence" if RECIPES[agent].remembers_already else "frames")
    settings = {"env": ENV, "features": None, "steps": 256, "eval_every": 256, "eval_episodes": 2}
    return TrainConfig(**{**vars(TINY), **settings, "agent": agent, "encoder": str(encoder), **changes})


@pytest.fixture(scope="module")
def runs(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each."""
    torch.set_num_threads(1)  # as in every test
    out = tmp_path_factory.mktemp("runs")
    for agent in HISTORY:
        train(tiny(agent, home), out / agent)
    return out


def inside(run: Path) -> dict[str, torch.Tensor]:
    prefix = "features_extractor.encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in weights(run).items() if name.startswith(prefix)}


@pytest.mark.parametrize("agent", HISTORY)
def test_what_is_frozen_stays(agent: str, home: Path, runs: Path) -> None:
    start, after = Encoder.load(home / "frames").state_dict(), inside(runs / agent)
    assert all(after[f"frames.{name}"].equal(tensor) for name, tensor in start.items())
    if not RECIPES[agent].remembers_already:
        built = read_json(runs / agent / "run.json")["encoder"]
        assert (built["backbone"], built["window"]) == ("gru", Backbone.window)
        return
    start = SequenceEncoder.load(home / "sequence").state_dict()
    moved = max(float((after[name] - tensor).abs().max()) for name, tensor in start.items())
    assert (moved == 0) == (agent == "history-frozen")
    assert moved < 0.1


@pytest.mark.parametrize("agent", HISTORY)
def test_the_saved_policy_acts_on_pixels_as_the_model_on_features(agent: str, home: Path, runs: Path) -> None:
    policy = ActorCriticPolicy.load(runs / agent / "last_policy.zip", device="cpu")
    model = PPO.load(runs / agent / "last_model.zip", device="cpu")
    encoder = policy.features_extractor.encoder
    wrapper = EncodedVecEnv if agent in IN_FRONT else HistoryVecEnv
    venv = wrapper(envs.make_vec(ENV, 3, seed=5), encoder, device="cpu")
    observations = venv.reset()
    for step in range(Backbone.window + 8):
        (features, _), (pixels, _) = (
            one.obs_to_tensor(seen) for one, seen in ((model.policy, observations), (policy, venv.frames))
        )
        wanted, given = (
            one.get_distribution(seen).distribution.probs for one, seen in ((model.policy, features), (policy, pixels))
        )
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
        observations, *_ = venv.step(np.full(3, step % 3))


def test_a_run_with_history_repeats_itself(home: Path, runs: Path, tmp_path: Path) -> None:
    train(tiny("history", home), tmp_path)
    assert same_evaluations(runs / "history", tmp_path)
    assert same_weights(runs / "history", tmp_path)


def test_a_film_of_a_policy_that_remembers(home: Path, runs: Path, tmp_path: Path) -> None:
    policy = ActorCriticPolicy.load(runs / "history" / "last_policy.zip", device="cpu")
    for name in ("a", "b"):
        film(policy, tiny("history", home), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with Image.open(tmp_path / "a") as picture:
        assert picture.n_frames > 10


@pytest.mark.parametrize("agent", HISTORY)
def test_the_wrong_kind_of_checkpoint_is_refused(agent: str, home: Path, tmp_path: Path) -> None:
    wrong = "vision" if RECIPES[agent].remembers_already else "sequence"
    other = home / {"vision": "frames"}.get(wrong, wrong)
    with pytest.raises(RlpreError, match=f"this is a {wrong} encoder"):
        train(tiny(agent, home, encoder=str(other)), tmp_path)


def test_the_narrow_view_shows_no_end_beside_the_start() -> None:
    world = envs.make(NARROW_MEMORY).unwrapped
    world.reset(seed=0)
    start, *ends = [(x, y) for x, y in np.ndindex(7, 7) if getattr(world.grid.get(x, y), "type", "") in ("key", "ball")]
    assert start[0] == 1
    assert {x for x, _ in ends} == {world.success_pos[0]}
    sights = 0
    for x, y, world.agent_dir in np.ndindex(7, 7, 4):
        if world.grid.get(x, y) is None:
            world.agent_pos = np.array([x, y])
            sights += (shown := world.in_view(*start))
            assert not (shown and any(world.in_view(*end) for end in ends))
    assert sights


@pytest.mark.parametrize("length", [7, 9, 11, 13])
def test_one_frame_tells_all_in_short_corridors_only(length: int) -> None:
    """Seen from the fork, facing back: what was shown at the start, and what lies at both ends."""
    world = envs.make(f"MiniGrid-MemoryS{length}-v0").unwrapped
    world.reset(seed=0)
    world.agent_pos, world.agent_dir = np.array([world.success_pos[0], length // 2]), 2
    seen = world.gen_obs()["image"][..., 0]
    things = np.isin(seen, [OBJECT_TO_IDX["key"], OBJECT_TO_IDX["ball"]]).sum()
    assert things == (3 if length < 11 else 2)
